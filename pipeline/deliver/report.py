"""The report: everything that was recorded on one page, as Markdown and as HTML."""

from __future__ import annotations

from collections import Counter
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.contracts import (
    BENCHMARK,
    METRICS,
    PACKED,
    REPORTS,
    Artifact,
    BenchmarkRecord,
    Fingerprint,
    Manifest,
    ModelMetrics,
    artifact_folder,
    read_curve,
)
from pipeline.deliver import plots
from pipeline.deliver.device_rows import RIGHT_ALIGNED, on_devices
from pipeline.deliver.int8_sections import (
    Section,
    ladder_section,
    noise_section,
    parity_section,
    proof_section,
    replaced_section,
)
from pipeline.deliver.results import (
    LEFT_ALIGNED,
    RUNTIME_NAMES,
    Row,
    best_per_backend,
    gather,
    numbered_notes,
    shown_cells,
)
from pipeline.files import write_whole
from pipeline.params import Params

MARKDOWN, HTML = REPORTS / "report.md", REPORTS / "report.html"
PARETO, TRAINING = REPORTS / "pareto.svg", REPORTS / "training.svg"
NOISE = REPORTS / "noise.svg"


def report(params: Params) -> None:
    """Stage `report`: reports/report.md, report.html and their plots.

    Raises `PipelineError` for a record that is missing or foreign; an artifact without
    measurements is no error but a row that says so.
    """
    rows = gather(params)
    artifacts = _artifacts(rows)
    networks = [("teachers", name) for name in params.teachers.enabled]
    networks += [("students", name) for name in params.students.enabled]
    pareto = plots.pareto(rows)
    training = plots.training({name: read_curve(name) for _, name in networks})
    noise = plots.noise(rows)
    students = {name: params.students.zoo[name] for name in params.students.enabled}
    context = {
        "title": "edgestill report",
        "summary": _summary(rows),
        "best": _best(rows),
        "pareto": _inline(pareto),
        "pareto_file": PARETO.name,
        "pareto_caption": _pareto_caption(rows),
        "training": _inline(training),
        "training_file": TRAINING.name,
        "students": [_student_section(name, rows) for name in params.students.enabled],
        "notes": numbered_notes(rows),
        "networks": _networks_section(networks),
        "devices": _devices_section(rows),
        "local_threads": params.benchmark.threads,
        "parity": parity_section(rows),
        "ladder": ladder_section(rows),
        "ladder_limit": f"{params.quantize.max_drop:g}",
        "replaced": replaced_section(students, rows),
        "noise": noise_section(rows),
        "noise_plot": _inline(noise),
        "noise_file": NOISE.name,
        "proof": proof_section(artifacts),
        "provenance": [_circumstances(params), _artifacts_section(artifacts)],
    }
    pages = {
        PARETO: pareto,
        TRAINING: training,
        NOISE: noise,
        MARKDOWN: _render("report.md.j2", context),
        HTML: _render("report.html.j2", context),
    }
    for file, content in pages.items():
        write_whole(file, content)


def _render(template: str, context: dict[str, Any]) -> str:
    """Fill a template of this package; unknown names are errors, HTML is escaped."""
    environment = jinja2.Environment(
        autoescape=template.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", r"\|").replace("\n", " ")
    source = files("pipeline.deliver").joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(source).render(context)


def _summary(rows: list[Row]) -> str:
    counts = Counter(row.status.replace("_", " ") for row in rows)
    states = ", ".join(f"{count} {status}" for status, count in counts.items())
    within = sum(row.within_limits for row in rows)
    return (
        f"{len(rows)} artifacts: {states}. {within} of {len(rows)} keep the accuracy limits. "
        "The fastest of them on each runtime:"
    )


def _best(rows: list[Row]) -> list[dict[str, str]]:
    """Per runtime the artifact to ship, or why there is none."""
    found = []
    for backend, row in best_per_backend(rows).items():
        entry = {"runtime": RUNTIME_NAMES[backend]}
        if row is None:
            reasons = {note for r in rows if r.backend == backend for note in r.notes[:1]}
            entry |= {"name": "", "figures": "", "why": "; ".join(sorted(reasons))}
        else:
            cells = row.cells()
            figures = (
                f"top-1 {cells['Top-1']} ({cells['Drop']} drop), "
                f"p50 {cells['p50 ms']} ms, {cells['kB']} kB"
            )
            entry |= {"name": f"{row.student} {row.precision}", "figures": figures, "why": ""}
        found.append(entry)
    return found


def _pareto_caption(rows: list[Row]) -> str:
    caption = (
        "Accuracy against latency: colour is the runtime, shape the precision, and a marker's "
        "area is proportional to the file's size. The line joins what no other artifact beats."
    )
    missing = [row.name for row in rows if row.metrics is None or row.p50 is None]
    return caption + (f" Not plotted, as not measured: {', '.join(missing)}." if missing else "")


def _student_section(student: str, rows: list[Row]) -> Section:
    notes = numbered_notes(rows)
    own = [row for row in rows if row.student == student]
    shown = [shown_cells(row, notes) for row in own]
    columns = tuple(shown[0])
    return Section(
        heading=student,
        columns=columns,
        numeric=tuple(column not in LEFT_ALIGNED for column in columns),
        rows=tuple(tuple(cells.values()) for cells in shown),
        marks=tuple("outside" if row.excess else row.status for row in own),
    )


def _networks_section(networks: list[tuple[str, str]]) -> Section:
    rows = []
    for kind, name in networks:
        metrics = ModelMetrics.read(METRICS / kind / f"{name}.json")
        shown = f"{name} (teacher)" if kind == "teachers" else name
        tops = f"{metrics.val_top1:.4f}", f"{metrics.test_top1:.4f}"
        rows.append((shown, *tops, f"{metrics.parameters:,}"))
    columns = ("Network", "Val top-1", "Test top-1", "Parameters")
    return Section("Float networks in torch", columns, (False, True, True, True), tuple(rows))


def _devices_section(rows: list[Row]) -> Section:
    """What devices said of the bundles, beside the local latency of the same artifacts."""
    found = on_devices(rows)
    shown = [one.cells() for one in found]
    columns = tuple(shown[0]) if shown else ()
    return Section(
        heading="On devices",
        columns=columns,
        numeric=tuple(column in RIGHT_ALIGNED for column in columns),
        rows=tuple(tuple(cells.values()) for cells in shown),
        marks=tuple(
            "outside" if one.failed else "measured" if one.current else "stale" for one in found
        ),
    )


def _circumstances(params: Params) -> Section:
    manifest = Manifest.read(PACKED / "manifest.json")
    benchmark = BenchmarkRecord.read(BENCHMARK)
    sizes = ", ".join(f"{split} {manifest.size(split):,}" for split in manifest.counts)
    side, reference = manifest.image_size, benchmark.reference.latency_ms
    settings = params.benchmark
    rows = [
        ("Profile", f"{params.profile}, seed {params.seed}"),
        ("Data", f"{manifest.source}; licence: {manifest.licence}"),
        ("Images", f"{sizes}; {side} x {side}, {manifest.channels} channel(s)"),
        ("Packed arrays", _digests(manifest.digests)),
        ("Rejected files", f"{len(manifest.rejected)}"),
        ("Calibration set", f"`{manifest.calibration_digest[:16]}`"),
        (
            "Latency",
            f"batch 1, {settings.threads} thread(s), {settings.rounds} interleaved rounds of at "
            f"least {settings.min_runs} inferences and {settings.min_seconds:g} s",
        ),
        (
            "Reference model",
            f"`{benchmark.reference_digest[:16]}`"
            + (f", p50 {reference.p50:.3f} ms" if reference else ""),
        ),
        (
            "Limits",
            f"top-1 drop at most {params.gate.max_top1_drop:g}, "
            f"agreement at least {params.gate.min_agreement:g}"
            + (f", top-1 at least {floor:g}" if (floor := params.gate.min_top1) else ""),
        ),
        *_machine(benchmark.fingerprint),
    ]
    rows += [("Warning", warning) for warning in manifest.warnings]
    return Section("Circumstances", ("What", "Value"), (False, False), tuple(rows))


def _machine(machine: Fingerprint) -> list[tuple[str, str]]:
    return [
        (
            "Machine",
            f"{machine.cpu}, {machine.architecture}, {machine.cores} core(s), "
            f"{machine.memory_gib} GiB, kernel {machine.kernel}, "
            f"governor {machine.governor or 'not told'}",
        ),
        ("Instruction sets", ", ".join(machine.instruction_sets) or "none of note"),
        ("Accelerators", ", ".join(machine.accelerators) or "none"),
        ("Runtimes", _versions(machine.runtimes)),
    ]


def _artifacts(rows: list[Row]) -> dict[str, Artifact]:
    """The record of every artifact by the name of its row; of missing ones the results tell."""
    files = {
        row.name: artifact_folder(row.student, row.backend, row.precision) / "artifact.json"
        for row in rows
    }
    return {name: Artifact.read(file) for name, file in files.items() if file.exists()}


def _artifacts_section(artifacts: dict[str, Artifact]) -> Section:
    """Every compiled artifact with its quantizer, tools and digests."""
    shown = [
        (
            name,
            artifact.quantizer or "none",
            _versions(artifact.versions),
            _digests(artifact.digests),
            "; ".join(artifact.notes),
        )
        for name, artifact in artifacts.items()
    ]
    columns = ("Artifact", "Quantizer", "Versions", "SHA-256", "Notes")
    return Section("Artifacts", columns, (False,) * 5, tuple(shown))


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _digests(digests: dict[str, str]) -> str:
    return ", ".join(f"{name} `{digest[:16]}`" for name, digest in digests.items())


def _inline(svg: str) -> Markup:
    """An SVG file's content as an element of a page: without the XML prologue."""
    return Markup(svg[svg.index("<svg") :])
