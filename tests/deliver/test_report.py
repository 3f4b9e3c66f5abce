from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipeline.contracts import (
    BENCHMARK,
    Artifact,
    BenchmarkRow,
    CompiledMetrics,
    FloatProduct,
    Latency,
    LayerNoise,
    Manifest,
    Partitions,
    Proof,
    artifact_folder,
    compiled_metrics_file,
    read_curve,
)
from pipeline.deliver import plots
from pipeline.deliver.int8_sections import replaced_section
from pipeline.deliver.report import HTML, MARKDOWN, NOISE, PARETO, TRAINING, report
from pipeline.deliver.results import Row, gather
from pipeline.errors import PipelineError
from pipeline.measure.benchmark import benchmark
from pipeline.measure.fingerprint import update_fingerprint
from pipeline.params import Network, Params
from tests.conftest import flawless

STUDENT = "mnv4_small_050"


@pytest.fixture(scope="module")
def recorded() -> list[bytes]:
    """What the one real benchmark of these tests wrote, once it has run."""
    return []


@pytest.fixture
def measured(workspace: Params, recorded: list[bytes]) -> Params:
    if not recorded:
        update_fingerprint()
        benchmark(workspace)
        recorded.append(BENCHMARK.read_bytes())
    BENCHMARK.write_bytes(recorded[0])
    return workspace


def test_the_report_tells_everything_that_was_recorded(measured: Params) -> None:
    report(measured)
    for page in (MARKDOWN.read_text(), HTML.read_text()):
        for row in gather(measured):
            cells = row.cells()
            assert all(cells[heading] in page for heading in ("Runtime", "Precision", "kB"))
            assert all(note in page for note in row.notes)
        for fact in ("three colours", "c" * 16, "0.9000", "0.8000", "1,234", measured.profile):
            assert fact in page


def prove(backend: str, precision: str, proof: Proof) -> None:
    """Replace the record of the workspace's artifact by one of this precision and proof."""
    known = artifact_folder(STUDENT, backend, {"tensorrt": "fp16"}.get(backend, "fp32"))
    record = Artifact.read(known / "artifact.json")
    record.model_copy(update={"precision": precision, "proof": proof}).write(
        known / "artifact.json"
    )


def test_the_report_tells_what_runs_in_int8(measured: Params) -> None:
    head, long = FloatProduct(name="head|<1>", macs=12_000), FloatProduct(name="x" * 99, macs=8_000)
    prove(
        "onnxruntime",
        "int8",
        Proof(
            macs=1_000_000,
            float_products=(head, long),
            per_channel=False,
            partitions=Partitions(delegated=3, builtin={"HARD_SWISH int8": 2, "PAD int8": 1}),
            input_type="uint8",
            output_type="float32",
        ),
    )
    report(measured)
    rest = "3 delegated; built-in kernels: 2 HARD_SWISH int8, 1 PAD int8"
    shown = ("1,000,000", "98.0%", "(12,000 MACs)", f"…{'x' * 59} (8,000 MACs)", "no", rest)
    for file, name in ((MARKDOWN, r"head\|<1>"), (HTML, "head|&lt;1&gt;")):
        section = file.read_text().split("What runs in int8")[1].split("Float networks")[0]
        assert all(cell in section for cell in (name, *shown, "uint8 to float32"))
        assert section.count("x" * 60) == 0


def test_the_report_names_the_layers_that_diverge(measured: Params) -> None:
    noise = {"stem": 31.25, "head|<1>": 7.5, "block": 19.0}
    layers = tuple(LayerNoise(name=name, snr_db=snr) for name, snr in noise.items())
    file = compiled_metrics_file(STUDENT, "onnxruntime", "fp32")
    CompiledMetrics.read(file).model_copy(update={"layers": layers}).write(file)
    report(measured)
    section = MARKDOWN.read_text().split("Noise of int8")[1].split("What runs in int8")[0]
    head = r"head\|<1>"
    assert f"| {head} | 7.5 | {head} | 7.5 | block | 19.0 |" in section
    assert HTML.read_text().count("<svg") == 3 and "onnxruntime" not in section


def test_a_replaced_hard_swish_stands_beside_the_one_that_was_kept() -> None:
    kept = Network(arch="mobilenetv3_small_050")
    students = {"soft": kept, "hard": kept.model_copy(update={"hard_swish": "relu6"})}
    shown = {"soft": (0.8925, 0.4), "hard": (0.8875, 0.1)}
    rows = []
    for student, (top1, p50) in shown.items():
        metrics = flawless(Path(__file__), 1.0, "ai-edge-litert 2", "tflite")
        times = Latency(p50=p50, p90=p50, p99=p50)
        latency = BenchmarkRow(status="measured", latency_ms=times, threads=1)
        metrics = metrics.model_copy(update={"top1": top1})
        rows.append(Row(student, "tflite", "int8", "measured", None, metrics, latency, ()))
    cells = ("hard LiteRT int8", "soft", "0.8875", "-0.0050", "0.100", "0.25")
    assert replaced_section(students, rows).rows == (cells,)
    assert replaced_section({"hard": students["hard"]}, rows[1:]).rows == ()


def test_a_float_artifact_does_not_list_its_products(measured: Params) -> None:
    products = tuple(FloatProduct(name=f"layer {i}", macs=5) for i in range(7))
    values = {"macs": 35, "float_products": products, "per_channel": None, "partitions": None}
    prove("tensorrt", "fp16", Proof(**values, input_type="uint8", output_type="float32"))
    report(measured)
    section = MARKDOWN.read_text().split("What runs in int8")[1].split("Float networks")[0]
    (line,) = (line for line in section.splitlines() if "TensorRT fp16" in line)
    assert "| all 7 |" in line and "0.0%" in line and "layer" not in line


def test_the_page_needs_no_network(measured: Params) -> None:
    report(measured)
    page = HTML.read_text()
    assert "<script" not in page and "@import" not in page
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    assert not re.search(r"url\((?!#)", page)
    assert page.count("<svg") == 2


def test_names_from_outside_are_escaped(measured: Params) -> None:
    file = Path("data/packed/manifest.json")
    manifest = Manifest.read(file)
    manifest.model_copy(update={"source": "<b>me</b> | you"}).write(file)
    report(measured)
    assert "&lt;b&gt;me&lt;/b&gt; | you" in HTML.read_text()
    assert r"<b>me</b> \| you" in MARKDOWN.read_text()


def test_equal_records_give_equal_files(measured: Params) -> None:
    files = (MARKDOWN, HTML, PARETO, TRAINING, NOISE)
    report(measured)
    first = [file.read_bytes() for file in files]
    report(measured)
    assert [file.read_bytes() for file in files] == first


def test_a_missing_record_leaves_no_half_report(measured: Params) -> None:
    Path("metrics/teachers/resnet.json").unlink()
    with pytest.raises(PipelineError, match=r"resnet\.json"):
        report(measured)
    assert not MARKDOWN.exists() and not PARETO.exists()


def test_the_plot_holds_what_was_measured_and_names_the_rest(measured: Params) -> None:
    report(measured)
    rows = gather(measured)
    plotted = [row for row in rows if row.p50 is not None]
    assert len(plots.points(rows)) == len(plotted) >= 1
    caption = re.search(r"Not plotted, as not measured: (.*)\.", MARKDOWN.read_text())
    missing = [row.name for row in rows if row.p50 is None]
    assert (caption.group(1).split(", ") if caption else []) == missing


def test_plots_are_well_formed_and_follow_the_pages_colours(measured: Params) -> None:
    rows = gather(measured)
    curves = {"resnet": read_curve("resnet")}
    for svg in (plots.pareto(rows), plots.training(curves), plots.pareto([])):
        ElementTree.fromstring(svg)
        assert "currentColor" in svg and "prefers-color-scheme:dark" in svg
        assert "<dc:date>" not in svg


def crowd(row: Row, n: int) -> list[Row]:
    """`n` artifacts within a few percent of one another."""
    assert row.metrics and row.latency and row.latency.latency_ms
    rows = []
    for i in range(n):
        metrics = row.metrics.model_copy(update={"top1": 0.90 - 0.001 * (i % 5)})
        times = row.latency.latency_ms.model_copy(update={"p50": 0.2 + 0.003 * i})
        latency = row.latency.model_copy(update={"latency_ms": times})
        rows.append(replace(row, metrics=metrics, latency=latency))
    return rows


def test_labels_of_crowded_points_do_not_cover_one_another(measured: Params, monkeypatch) -> None:
    placed = []
    lead = plots._lead

    def remember(axes, point, radius, box) -> None:
        placed.append(box)
        lead(axes, point, radius, box)

    monkeypatch.setattr(plots, "_lead", remember)
    plots.pareto(crowd(gather(measured)[0], 14))
    assert len(placed) == 14
    for i, box in enumerate(placed):
        for other in placed[:i]:
            assert plots._overlap(box, other) < 0.1 * box.area


def test_the_frontier_is_what_no_other_artifact_beats() -> None:
    def point(p50: float, top1: float) -> plots.Point:
        return plots.Point("", "openvino", "int8", p50, top1, 1)

    good = [point(1, 80), point(2, 90), point(4, 91)]
    assert plots.frontier([point(3, 85), *good[::-1], point(5, 91), point(2, 89)]) == good


def test_without_a_benchmark_there_is_no_report(measured: Params) -> None:
    BENCHMARK.unlink()
    with pytest.raises(PipelineError, match="BenchmarkRecord"):
        report(measured)
