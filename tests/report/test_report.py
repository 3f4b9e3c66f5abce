from __future__ import annotations

import base64
import difflib
import html
import io
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.markdown import Markdown

from pipeline.accuracy.metrics import calibration_error
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.records import ArtifactRecord, ExecutionReport, FloatLayer, Partitions
from pipeline.cli.params import Params
from pipeline.compile.evidence import Evidence
from pipeline.compile.records import CompiledMetrics, LayerNoise
from pipeline.core.errors import PipelineError
from pipeline.core.records import METRICS
from pipeline.data.records import PACKED, Manifest
from pipeline.latency.benchmark import benchmark
from pipeline.latency.fingerprint import update_fingerprint
from pipeline.latency.records import (
    BENCHMARK,
    LATENCIES,
    BenchmarkRecord,
    BenchmarkRow,
    Conditions,
    Latency,
)
from pipeline.networks.params import Network
from pipeline.report import pareto as pareto_module
from pipeline.report import plots
from pipeline.report.page import HTML, MARKDOWN, PLOTS, UNANSWERED, report
from pipeline.report.pareto import Point, frontier, pareto, points
from pipeline.report.plots import strips
from pipeline.report.provenance import circumstances_section
from pipeline.report.results import Row, gather
from pipeline.report.sections import replaced_section
from pipeline.training.records import ModelMetrics
from tests.conftest import COLOURS, flawless

STUDENT = "mnv4_small_050"


@pytest.fixture(scope="module")
def recorded() -> dict[Path, bytes]:
    """What the one real benchmark of these tests wrote, once it has run."""
    return {}


@pytest.fixture
def measured(workspace: Params, recorded: dict[Path, bytes]) -> Params:
    if not recorded:
        update_fingerprint()
        benchmark(workspace)
        recorded.update((file, file.read_bytes()) for file in (BENCHMARK, LATENCIES))
    for file, content in recorded.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return workspace


def test_the_report_tells_everything_that_was_recorded(measured: Params) -> None:
    report(measured)
    for page in (read_as_text(MARKDOWN), html.unescape(HTML.read_text())):
        for row in gather(measured):
            cells = row.cells()
            assert all(cells[heading] in page for heading in ("Runtime", "Precision", "kB"))
            assert all(note in page for note in row.notes)
        for fact in ("three colours", "c" * 16, "0.9000", "0.8000", "1,234", measured.profile):
            assert fact in page


def read_as_text(file: Path) -> str:
    """What a reader of Markdown sees: HTML tags have gone, as GitHub runs or drops them."""
    console = Console(width=9000)
    with console.capture() as capture:
        console.print(Markdown(file.read_text()))
    return capture.get()


def between(file: Path, heading: str, following: str) -> str:
    """What a page says under a heading, up to the one that follows."""
    mark = "## {}" if file == MARKDOWN else "<h2>{}"
    page = file.read_text().split(mark.format(heading))[1]
    return page.split(mark.format(following))[0]


def execution_report(backend: str, precision: str, execution: ExecutionReport) -> None:
    """Replace the record of the workspace's artifact by one of this precision and execution."""
    known = Artifact(STUDENT, backend, {"tensorrt": "fp16"}.get(backend, "fp32")).folder
    record = ArtifactRecord.read(known / "artifact.json")
    record.model_copy(update={"precision": precision, "execution": execution}).write(
        known / "artifact.json"
    )


def test_the_execution_report_tells_what_runs_in_int8(measured: Params) -> None:
    head, long = FloatLayer(name="head|<1>", macs=12_000), FloatLayer(name="x" * 99, macs=8_000)
    execution_report(
        "onnxruntime",
        "int8",
        ExecutionReport(
            macs=1_000_000,
            in_float=(head, long),
            per_channel=False,
            partitions=Partitions(delegated=3, builtin={"HARD_SWISH int8": 2, "PAD int8": 1}),
            input_type="uint8",
            output_type="float32",
        ),
    )
    report(measured)
    rest = "3 delegated; built-in kernels: 2 HARD_SWISH int8, 1 PAD int8"
    shown = ("1,000,000", "98.0%", "(12,000 MACs)", f"…{'x' * 59} (8,000 MACs)", "no", rest)
    for file, name in ((MARKDOWN, r"head\|\<1\>"), (HTML, "head|&lt;1&gt;")):
        section = between(file, "Execution report", "Answers")
        assert all(cell in section for cell in (name, *shown, "uint8 to float32"))
        assert section.count("x" * 60) == 0


def test_the_report_names_the_layers_that_diverge(measured: Params) -> None:
    noise = {"stem": 31.25, "head|<1>": 7.5, "block": 19.0}
    layers = tuple(LayerNoise(name=name, snr_db=snr) for name, snr in noise.items())
    file = Artifact(STUDENT, "onnxruntime", "fp32").metrics
    CompiledMetrics.read(file).model_copy(update={"layers": layers}).write(file)
    report(measured)
    section = between(MARKDOWN, "Noise of int8 by layer", "Execution report")
    head = r"head\|\<1\>"
    assert f"| {head} | 7.5 | {head} | 7.5 | block | 19.0 |" in section
    assert "noise-figure_1" in HTML.read_text() and "onnxruntime" not in section


def test_a_replaced_hard_swish_stands_beside_the_one_that_was_kept() -> None:
    kept = Network(arch="mobilenetv3_small_050")
    students = {"soft": kept, "hard": kept.model_copy(update={"hard_swish": "relu6"})}
    shown = {"soft": (0.8925, 0.4), "hard": (0.8875, 0.1)}
    rows = []
    for student, (top1, p50) in shown.items():
        metrics = flawless(Path(__file__), 1.0, "ai-edge-litert 2")
        times = Latency(p50=p50, p90=p50, p99=p50)
        latency = BenchmarkRow(status="measured", latency_ms=times, threads=1)
        metrics = metrics.model_copy(update={"top1": top1})
        artifact = Artifact(student, "tflite", "int8")
        rows.append(Row(artifact, "measured", None, metrics, latency, ()))
    cells = ("hard LiteRT int8", "soft", "0.8875", "-0.0050", "0.100", "0.25")
    assert replaced_section(students, rows).rows == (cells,)
    assert replaced_section({"hard": students["hard"]}, rows[1:]).rows == ()


def test_a_float_artifact_does_not_list_its_layers(measured: Params) -> None:
    layers = tuple(FloatLayer(name=f"layer {i}", macs=5) for i in range(7))
    values = {"macs": 35, "in_float": layers, "per_channel": None, "partitions": None}
    execution_report(
        "tensorrt", "fp16", ExecutionReport(**values, input_type="uint8", output_type="float32")
    )
    report(measured)
    section = between(MARKDOWN, "Execution report", "Answers")
    (line,) = (line for line in section.splitlines() if "TensorRT fp16" in line)
    assert "| all 7 |" in line and "0.0%" in line and "layer" not in line


def test_the_page_needs_no_network(measured: Params) -> None:
    answer(wrong=(4, 7))
    report(measured)
    page = HTML.read_text()
    assert not re.search(r"<script[^>]*src", page) and "@import" not in page
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    assert not re.search(r"url\((?!#|data:image/png;base64,)", page)


def test_every_id_of_the_page_is_its_own(measured: Params) -> None:
    answer(wrong=(4, 7))
    report(measured)
    page = HTML.read_text()
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(set(ids)) == len(ids) > 10
    for anchor in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page):
        assert "".join(anchor) in ids


def test_without_its_script_the_page_has_no_dead_controls(measured: Params) -> None:
    report(measured)
    page = HTML.read_text().split("<script")[0]
    assert page.count("<form") == len(re.findall("<form [^>]* hidden>", page)) == 2
    assert "<button" not in re.sub("<form.*?</form>", "", page, flags=re.DOTALL)


def answer(wrong: tuple[int, ...], classes: int = 3, at: float = 5.0) -> Evidence:
    """The fp32 artifact takes these test images for the next class, with logits of `at`."""
    file = Artifact(STUDENT, "onnxruntime", "fp32").evidence
    labels = np.load(PACKED / "test_labels.npy")
    answers = labels.copy()
    answers[list(wrong)] = (labels[list(wrong)] + 1) % 3
    artifact = ArtifactRecord.read(
        Artifact(STUDENT, "onnxruntime", "fp32").folder / "artifact.json"
    )
    manifest = Manifest.read(PACKED / "manifest.json")
    logits = at * np.eye(classes, dtype=np.float32)[answers]
    evidence = Evidence.of(artifact, manifest, logits, labels)
    evidence.write(file)
    return evidence


def test_the_report_tells_what_is_confused_and_how_sure_the_answers_are(measured: Params) -> None:
    evidence = answer(wrong=(4, 7, 2))  # two of green, one of blue
    report(measured)
    ece = f"{calibration_error(evidence.reliability):.4f}"
    frequent = "green taken for blue (2); blue taken for red (1)"
    for file in (MARKDOWN, HTML):
        section = between(file, "Answers", "Latency")
        assert ece in section and frequent in section
        assert "image 2: blue taken for red at 98.7%" in section
        assert "0.7225 to 1.0000" in section  # of a recall of 10 in 10, as the metrics have it
    matrix = ("red | 10 | 0 | 0 |", "green | 0 | 8 | 2 |", "blue | 1 | 0 | 9 |")
    assert all(line in MARKDOWN.read_text() for line in matrix)


def test_a_wrong_image_is_shown_once_however_many_take_it_wrong(measured: Params) -> None:
    evidence = answer(wrong=(4, 7))
    evidence.write(Artifact(STUDENT, "tensorrt", "fp16").evidence)
    report(measured)
    page = HTML.read_text()
    assert page.count("data:image/png;base64,") == 2
    assert page.count('class="thumb t4"') == page.count('class="thumb t7"') == 2
    uri = re.search(r"\.t7 \{ background-image: url\(data:image/png;base64,([^)]*)", page)
    assert uri
    with Image.open(io.BytesIO(base64.b64decode(uri.group(1)))) as picture:
        shown = np.asarray(picture)
    assert np.array_equal(shown, np.load(PACKED / "test_images.npy")[7])


def test_every_accuracy_has_its_interval_and_a_small_test_split_is_told(measured: Params) -> None:
    report(measured)
    for file in (MARKDOWN, HTML):
        text = file.read_text()
        assert (
            "test has 30 images, too few to decide limits.max_top1_drop (0.01): a loss of" in text
        )
        assert "0.8865 to 1.0000" in text  # 1.0 of 30 images
        assert "0.5000, blue" in text  # the lowest recall of the float networks


def test_many_classes_have_a_list_in_place_of_a_matrix(measured: Params) -> None:
    file = PACKED / "manifest.json"
    names = ("red", "green", "blue", *(f"class {i}" for i in range(28)))
    Manifest.read(file).model_copy(update={"classes": names}).write(file)
    answer(wrong=(4, 7), classes=len(names))
    report(measured)
    assert "| green | blue | 2 |" in between(MARKDOWN, "Answers", "Latency")
    assert 'class="heat"' not in HTML.read_text()
    for file in (MARKDOWN, HTML):
        assert "most frequent confusions" in between(file, "Answers", "Latency")


def test_many_classes_without_a_confusion_have_no_list(measured: Params) -> None:
    file = PACKED / "manifest.json"
    names = tuple(f"class {i}" for i in range(31))
    Manifest.read(file).model_copy(update={"classes": names}).write(file)
    answer(wrong=(), classes=len(names))
    Path(Artifact(STUDENT, "tensorrt", "fp16").evidence).unlink()
    report(measured)
    for file in (MARKDOWN, HTML):
        section = between(file, "Answers", "Latency")
        assert "most frequent confusions" not in section and "Wrong answers of" not in section
    empty = r"<tbody>\s*</tbody>", r"\| --- \|[^\n]*\n(?!\|)"
    assert not re.search(empty[0], between(HTML, "Answers", "Latency"))
    assert not re.search(empty[1], between(MARKDOWN, "Answers", "Latency"))


def test_a_report_without_recorded_answers_says_so(measured: Params) -> None:
    for backend, precision in measured.backends.pairs():
        Artifact(STUDENT, backend, precision).evidence.unlink()
    report(measured)
    for file in (MARKDOWN, HTML):
        assert UNANSWERED in between(file, "Answers", "Latency")


def test_answers_to_another_test_split_are_refused(measured: Params) -> None:
    """Even to one of as many images."""
    file = Artifact(STUDENT, "onnxruntime", "fp32").evidence
    known = Evidence.read(file)
    fewer = {"images": 29, "by_class": dict.fromkeys(COLOURS, 10) | {"red": 9}}
    for other in ({"test_digest": "d" * 64}, fewer):
        known.model_copy(update=other).write(file)
        with pytest.raises(PipelineError, match=r"fp32\.json.*answers to another test split"):
            report(measured)


def test_every_latency_that_was_measured_is_drawn(measured: Params) -> None:
    report(measured)
    (row,) = (row for row in gather(measured) if row.p50 is not None)
    svg = PLOTS["latencies"].read_text()
    assert re.findall('<g id="strip-([^"]*)"', svg) == ["reference", row.artifact.slug]
    with np.load(LATENCIES) as raw:
        inferences = len(raw[f"{STUDENT}/onnxruntime/fp32/ns"])
    assert f"| {row.name} | {inferences:,} | {row.p50:.3f} |" in MARKDOWN.read_text()


def test_latencies_that_are_missing_or_of_another_run_stop_the_report(measured: Params) -> None:
    with np.load(LATENCIES) as raw:
        reference = {"reference/ns": raw["reference/ns"]}
    np.savez(LATENCIES, **reference)
    for said in ("damaged or of another run", "is missing"):
        with pytest.raises(PipelineError, match=said) as error:
            report(measured)
        assert error.value.where == str(LATENCIES)
        LATENCIES.unlink(missing_ok=True)


def test_rounds_that_others_disturbed_are_told(measured: Params) -> None:
    quiet = Conditions(seconds=1.0, others=0.01, elsewhere=0.02)
    busy = Conditions(seconds=1.0, others=0.4, spoiled="other processes took 40% of the CPUs' time")
    record = BenchmarkRecord.read(BENCHMARK)
    record.model_copy(
        update={"conditions": (quiet, busy), "repeated_rounds": 1, "overhead_ns": 123}
    ).write(BENCHMARK)
    report(measured)
    page = MARKDOWN.read_text()
    assert "| Harness | adds 123 ns to each latency |" in page
    assert (
        "| Rounds | 1 measured again, 1 spoiled ones kept; other processes took at most 40.0% of "
        "the measuring CPUs' time; of the other CPUs' time at most 2.0% was taken; other processes "
        "took 40% of the CPUs' time |"
    ) in page


def test_names_from_outside_are_escaped(measured: Params) -> None:
    file = Path("data/packed/manifest.json")
    manifest = Manifest.read(file)
    manifest.model_copy(update={"source": "<b>me</b> | you"}).write(file)
    report(measured)
    assert "&lt;b&gt;me&lt;/b&gt; | you" in HTML.read_text()
    assert "<b>me</b> | you" in read_as_text(MARKDOWN)


NAMES = ("a*b", "<img src=x>", "_c_ `d` [e](f) g|h \\* &lt; ~i~ snake_case")


@pytest.mark.parametrize("classes", [3, 31])
def test_markdown_shows_the_names_of_classes_as_they_are(measured: Params, classes: int) -> None:
    file = PACKED / "manifest.json"
    names = (*NAMES, *(f"*{i}*" for i in range(3, classes)))
    Manifest.read(file).model_copy(update={"classes": names}).write(file)
    answer(wrong=(0, 1, 2), classes=classes)
    report(measured)
    page = read_as_text(MARKDOWN)
    for label, wrong in zip(NAMES, (*NAMES[1:], NAMES[0]), strict=True):
        assert f"{label} taken for {wrong} (1)" in page  # in a table
        assert re.search(rf"image \d: {re.escape(label)} taken for {re.escape(wrong)} at", page)
    assert page.count("\n") > 100 and "snake_case" in MARKDOWN.read_text()
    assert STUDENT in MARKDOWN.read_text()


def test_markdown_shows_reasons_as_they_are(measured: Params) -> None:
    record = BenchmarkRecord.read(BENCHMARK)
    why = "<unknown> error in __init__ of *this*: `try` again"
    failed = BenchmarkRow(status="failed", reason=why, threads=1)
    rows = dict.fromkeys(record.rows, failed)
    record.model_copy(update={"rows": rows}).write(BENCHMARK)
    report(measured)
    page = read_as_text(MARKDOWN)
    assert f"ONNX Runtime: none to recommend (latency failed: {why})" in page
    assert f"[1] latency failed: {why}" in page


def disturbances(params: Params, **changes: object) -> dict[str, str]:
    """The rows on what takes part in a latency beside the artifact, with another record."""
    record = BenchmarkRecord.read(BENCHMARK).model_copy(update=changes)
    manifest = Manifest.read(PACKED / "manifest.json")
    rows = dict(circumstances_section(params, manifest, record).rows)
    return {what: rows[what] for what in ("Pinned to", "Rounds") if what in rows}


def test_a_system_that_tells_nothing_is_not_taken_for_a_quiet_one(measured: Params) -> None:
    unpinned = BenchmarkRecord.read(BENCHMARK).reference.model_copy(update={"cpus": None})
    silent = (Conditions(seconds=1.0),) * 3
    assert disturbances(measured, reference=unpinned, conditions=silent) == {
        "Pinned to": "no CPU: this system cannot pin",
        "Rounds": "not watched: this system reports neither other processes nor clocks",
    }
    pinned = unpinned.model_copy(update={"cpus": (1, 3)})
    told = (*silent, Conditions(seconds=1.0, mhz=2000.0))
    assert disturbances(measured, reference=pinned, conditions=told, repeated_rounds=2) == {
        "Pinned to": "CPU 1, 3",
        "Rounds": "2 measured again, 0 spoiled ones kept",
    }


def test_the_report_tells_how_a_call_of_many_images_is_made(measured: Params) -> None:
    for batch, told in ((16, True), (0, False)):
        settings = measured.benchmark.model_copy(update={"batch": batch})
        report(measured.model_copy(update={"benchmark": settings}))
        for file in (MARKDOWN, HTML):
            words = " ".join(file.read_text().split())
            assert ("measured with 16 images a call on all cores" in words) == told
            assert ("LiteRT's graph takes one image" in words) == told


def test_equal_records_give_equal_files(measured: Params) -> None:
    answer(wrong=(4, 7))
    files = (MARKDOWN, HTML, *PLOTS.values())
    report(measured)
    first = [file.read_bytes() for file in files]
    report(measured)
    assert [file.read_bytes() for file in files] == first


def test_a_missing_record_leaves_no_half_report(measured: Params) -> None:
    Path("metrics/teachers/resnet.json").unlink()
    with pytest.raises(PipelineError, match=r"resnet\.json"):
        report(measured)
    assert not MARKDOWN.exists() and not PLOTS["pareto"].exists()


def test_the_plot_holds_what_was_measured_and_names_the_rest(measured: Params) -> None:
    report(measured)
    rows = gather(measured)
    plotted = [row for row in rows if row.p50 is not None]
    assert len(points(rows)) == len(plotted) >= 1
    caption = re.search(r"Not plotted because not measured: (.*)\.", MARKDOWN.read_text())
    missing = [row.name for row in rows if row.p50 is None]
    assert (caption.group(1).split(", ") if caption else []) == missing


def test_plots_are_well_formed_and_follow_the_pages_colours(measured: Params) -> None:
    rows = gather(measured)
    networks = {"resnet": ModelMetrics.read(METRICS / "teachers/resnet.json")}
    drawn = plots.latencies(strips(rows, BenchmarkRecord.read(BENCHMARK)))
    for svg in (pareto(rows), plots.training(networks), pareto([]), drawn):
        ElementTree.fromstring(svg)
        assert "currentColor" in svg and "prefers-color-scheme:dark" in svg
        assert "<dc:date>" not in svg


@pytest.mark.usefixtures("measured")
def test_epochs_under_rounding_have_a_ground_of_their_own() -> None:
    plain = ModelMetrics.read(METRICS / "teachers/resnet.json")
    rounded = plain.model_copy(update={"rounded": (2.4, 3.0)})
    marked = [plots.training({"resnet": its}).count(plots.GREY) for its in (plain, rounded)]
    assert marked == [0, 2]  # of the losses and of the accuracies


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


def changed_lines(before: str, after: str) -> int:
    """How many lines of the second text are not in the first."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return sum(line.startswith("+") for line in lines) - 1


def test_a_moved_point_changes_its_own_lines_of_a_plot(measured: Params) -> None:
    """Git keeps the plots: another run on the same machine shall give a small difference."""
    rows = crowd(gather(measured)[0], 10)
    assert rows[4].latency and rows[4].latency.latency_ms
    times = rows[4].latency.latency_ms.model_copy(update={"p50": 0.213})
    latency = rows[4].latency.model_copy(update={"latency_ms": times})
    moved = [*rows[:4], replace(rows[4], latency=latency), *rows[5:]]
    before, after = pareto(rows), pareto(moved)
    assert changed_lines(before, before) <= 0 < changed_lines(before, after) <= 12
    spread = np.linspace(-1, 1, 200) ** 3  # the ends of the axis lie far from a rounded limit
    found = strips(gather(measured), BenchmarkRecord.read(BENCHMARK))
    drawn = [replace(one, times=0.22 + 0.05 * spread) for one in found]
    slower = [*drawn[:-1], replace(drawn[-1], times=0.2201 + 0.0499 * spread)]
    before, after = plots.latencies(drawn), plots.latencies(slower)
    assert 0 < changed_lines(before, after) <= 6
    assert not re.search(r'd="[^"]*\n', before)


def test_labels_of_crowded_points_do_not_cover_one_another(measured: Params, monkeypatch) -> None:
    placed = []
    lead = pareto_module._lead

    def remember(axes, point, radius, box):
        placed.append(box)
        return lead(axes, point, radius, box)

    monkeypatch.setattr(pareto_module, "_lead", remember)
    pareto(crowd(gather(measured)[0], 14))
    assert len(placed) == 14
    for i, box in enumerate(placed):
        for other in placed[:i]:
            assert pareto_module._overlap(box, other) < 0.1 * box.area


def test_lines_to_labels_do_not_move_the_points(measured: Params, monkeypatch) -> None:
    """Where few images make all accuracies equal, the lines alone would scale the axis."""
    first, drawn = gather(measured)[0], []
    same = [replace(row, metrics=first.metrics) for row in crowd(first, 14)]
    lead = pareto_module._lead

    def look(axes, point, radius, box):
        drawn.append((lead(axes, point, radius, box), axes.get_ylim()))
        return drawn[-1][0]

    monkeypatch.setattr(pareto_module, "_lead", look)
    pareto(same)
    assert any(line for line, _ in drawn)
    assert len({limits for _, limits in drawn}) == 1


def test_the_frontier_is_what_no_other_artifact_beats() -> None:
    def point(p50: float, top1: float) -> Point:
        return Point(Artifact("", "openvino", "int8"), p50, top1, 1)

    good = [point(1, 80), point(2, 90), point(4, 91)]
    assert frontier([point(3, 85), *good[::-1], point(5, 91), point(2, 89)]) == good


def test_without_a_benchmark_there_is_no_report(measured: Params) -> None:
    BENCHMARK.unlink()
    with pytest.raises(PipelineError, match="BenchmarkRecord"):
        report(measured)
