"""The report: all records of a run on one page, as Markdown and as HTML."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup

from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.base.registry import backend, title
from pipeline.compile.records import compiled_metrics
from pipeline.core.files import write_whole
from pipeline.core.records import METRICS
from pipeline.data.recall import interval
from pipeline.data.records import PACKED, Manifest
from pipeline.latency.records import BENCHMARK, BenchmarkRecord
from pipeline.networks.shipped import shipped
from pipeline.report import answers_section as answers
from pipeline.report import plots, recommendation, sections
from pipeline.report import pruned_section as pruned
from pipeline.report.attribution_section import CURVES_TEXT, EXPLAINED_TEXT, explanations
from pipeline.report.device_rows import LEFT_ALIGNED, on_devices
from pipeline.report.params import ReportParams
from pipeline.report.pareto import pareto
from pipeline.report.provenance import artifacts_section, circumstances_section
from pipeline.report.rendering import inline, render, style
from pipeline.report.results import (
    REPORTS,
    UNKNOWN,
    Row,
    best_per_backend,
    gather,
    numbered_notes,
)
from pipeline.report.robustness_section import CAPTION, PLOT, gather_robustness, robustness_plot
from pipeline.report.sections import Section
from pipeline.training.records import ModelMetrics

MARKDOWN, HTML = REPORTS / "report.md", REPORTS / "report.html"
PLOTS = {name: REPORTS / f"{name}.svg" for name in ("pareto", "training", "noise", "latencies")}
Network = tuple[str, str, str, ModelMetrics]
"""Kind, name, name of the curves, and metrics."""
UNANSWERED = "No answers to the test split are recorded yet; run `dvc repro`."
_LATENCIES_CAPTION = (
    "Distribution of single-image latencies over all rounds: the long bar is p50, the short one "
    "p90, grey the frozen reference model. The slowest 0.1% of the images may lie outside the axis."
)
_TRAINING_CAPTION = (
    "Losses and val top-1 by epoch. Where the ground is grey, a student learns under int8's "
    "rounding; it keeps the best of the epochs that end there."
)
_LATENCY_TEXT = (
    "The intervals of p90 and of the ratio to the reference are 95% bootstrap intervals over the "
    "interleaved rounds."
)


def report(params: ReportParams) -> None:
    """Stage `report`: reports/report.md, report.html and their plots.

    An artifact without measurements is a row that gives the reason.

    Raises:
        PipelineError: for a record that is missing, invalid or of another test split.
    """
    rows = gather(params)
    artifacts = {row.name: _artifact(row) for row in rows if row.metrics}
    manifest = Manifest.read(PACKED / "manifest.json")
    benchmark = BenchmarkRecord.read(BENCHMARK)
    networks = _networks(params)
    drawn = {
        "pareto": pareto(rows),
        "training": plots.training({curves: its for _, _, curves, its in networks}),
        "noise": plots.noise(rows),
        "latencies": plots.latencies(plots.strips(rows, benchmark)),
    }
    robust = gather_robustness(params)
    if robust:
        drawn["robustness"] = robustness_plot(robust)
    context = {
        "title": "edgestill report",
        "about": _about(params, manifest, benchmark),
        "drawn": {name: inline(name, svg) for name, svg in drawn.items()},
        "plots": {name: file.name for name, file in (*PLOTS.items(), ("robustness", PLOT))},
        **_results(params, rows),
        **_sections(params, rows, manifest, benchmark, artifacts),
        **_answers(rows, manifest),
        "explained": explanations(params.attribution, manifest),
        "explained_text": EXPLAINED_TEXT,
        "curves_text": CURVES_TEXT,
        "networks": _networks_section(networks, manifest),
        "training_caption": _TRAINING_CAPTION,
        "robust": robust,
        "robustness_caption": CAPTION,
        "unsure": recommendation.unsure(rows, params, benchmark),
    }
    context["style"] = style()
    context["script"] = Markup(render("report/report.js.j2", {}))
    pages = {(PLOTS | {"robustness": PLOT})[name]: svg for name, svg in drawn.items()}
    pages[MARKDOWN] = render("report/report.md.j2", context)
    pages[HTML] = render("report/report.html.j2", context)
    for file, content in pages.items():
        write_whole(file, content)
    if not robust:
        PLOT.unlink(missing_ok=True)


def _about(params: ReportParams, manifest: Manifest, benchmark: BenchmarkRecord) -> str:
    """Data, settings and machine of the run in one line."""
    threads = params.benchmark.threads
    return (
        f"{manifest.source}, {manifest.size('test'):,} test images; profile {params.profile}, "
        f"seed {params.seed}; latencies on {benchmark.fingerprint.cpu}, {threads} thread(s)"
    )


def _results(params: ReportParams, rows: list[Row]) -> dict[str, Any]:
    """The verdict, the table of results and the data of the page's script."""
    data = json.dumps(recommendation.page_data(rows, params.limits), ensure_ascii=False)
    return {
        "verdict": recommendation.verdict(rows, params.limits),
        "cards": recommendation.cards(rows),
        "limits": recommendation.limits(params.limits),
        "colours": {row.artifact.backend: backend(row.artifact.backend).colour for row in rows},
        "rows": rows,
        "best": [row for row in best_per_backend(rows).values() if row],
        "results": recommendation.results_section(rows),
        "notes": numbered_notes(rows),
        "students": {row.artifact.student: row.artifact.student for row in rows},
        "runtimes": {row.artifact.backend: title(row.artifact.backend) for row in rows},
        "precisions": {row.artifact.precision: row.artifact.precision for row in rows},
        "pareto_caption": _pareto_caption(rows),
        "latencies_caption": _LATENCIES_CAPTION,
        "latency_text": _LATENCY_TEXT,
        "data": Markup(data.replace("<", r"\u003c")),
    }


def _artifact(row: Row) -> ArtifactRecord:
    """The record of a compiled artifact, which its files, metrics and evidence belong to."""
    compiled_metrics(row.artifact)
    return ArtifactRecord.read_whole(row.artifact.folder)


def _sections(
    params: ReportParams,
    rows: list[Row],
    manifest: Manifest,
    benchmark: BenchmarkRecord,
    artifacts: dict[str, ArtifactRecord],
) -> dict[str, Any]:
    students = {name: params.students.zoo[name] for name in params.students.enabled}
    return {
        "devices": _devices_section(rows),
        "local_threads": params.benchmark.threads,
        "batch": params.benchmark.batch,
        "parity": sections.parity_section(rows),
        "ladder": sections.ladder_section(rows, manifest.size("val")),
        "undecided": sections.undecided(rows),
        "ladder_limit": f"{params.quantize.max_drop:g}",
        "ladder_level": f"{params.quantize.significance:g}",
        "replaced": sections.replaced_section(students, rows),
        "pruned": pruned.pruned_section(params),
        "beside": pruned.beside_section(params, rows, artifacts),
        "unpaid": pruned.verdicts(params, rows, artifacts),
        "noise": sections.noise_section(rows),
        "execution": sections.execution_section(artifacts),
        "latency": sections.latency_section(rows, benchmark),
        "provenance": [
            circumstances_section(params, manifest, benchmark),
            artifacts_section(artifacts),
        ],
    }


def _answers(rows: list[Row], manifest: Manifest) -> dict[str, Any]:
    """Every artifact's answers; the recommended artifact is shown first."""
    found = answers.gather_answers(rows, manifest)
    best = recommendation.fastest(rows)
    chosen = next((one for one in found if one.row is best), None)
    return {
        "answers": answers.answers_section(found, rows),
        "answered": found,
        "chosen": chosen or next(iter(found), None),
        "unanswered": UNANSWERED,
        "recalled": answers.recall_section,
        "confused": answers.matrix_section,
        "reliable": answers.reliability_section,
        "thumbnails": answers.thumbnails(found),
    }


def _networks(params: ReportParams) -> list[Network]:
    """Every teacher, and of every student the network that ships."""
    networks: list[Network] = []
    for name in params.teachers.enabled:
        metrics = ModelMetrics.read(METRICS / "teachers" / f"{name}.json")
        networks.append(("teachers", name, name, metrics))
    for name in params.students.enabled:
        its = shipped(name, params.prune.enabled)
        networks.append(("students", name, its.curves, ModelMetrics.read(its.metrics)))
    return networks


def _pareto_caption(rows: list[Row]) -> str:
    caption = (
        "Accuracy against latency. Colour is the runtime, shape the precision, and the area of a "
        "marker is proportional to the file's size. The line is the Pareto frontier."
    )
    missing = [row.name for row in rows if row.metrics is None or row.p50 is None]
    return caption + (
        f" Not plotted because not measured: {', '.join(missing)}." if missing else ""
    )


def _networks_section(networks: list[Network], manifest: Manifest) -> Section:
    rows = []
    for kind, name, _, metrics in networks:
        recall, classes = metrics.recall, manifest.classes
        worst = recall.worst(1)[0] if recall else None
        rows.append(
            {
                "Network": f"{name} (teacher)" if kind == "teachers" else name,
                "Val top-1": f"{metrics.val_top1:.4f}",
                "95% of val": interval(metrics.val_top1, manifest.size("val")),
                "Test top-1": f"{metrics.top1:.4f}",
                "95% of test": interval(metrics.top1, manifest.size("test")),
                "Balanced": f"{recall.balanced:.4f}" if recall else UNKNOWN,
                "Lowest recall": UNKNOWN
                if recall is None or worst is None
                else f"{recall.by_class[worst]:.4f}, {classes[worst]}",
                "Parameters": f"{metrics.parameters:,}",
            }
        )
    return Section.of("Float networks in torch", rows, ("Network", "Lowest recall"))


def _devices_section(rows: list[Row]) -> Section:
    """Results from devices, beside the local latency of the same artifacts."""
    found = on_devices(rows)
    marks = tuple(
        "outside" if one.failed else "measured" if one.current else "stale" for one in found
    )
    return Section.of("On devices", [one.cells() for one in found], LEFT_ALIGNED, marks)
