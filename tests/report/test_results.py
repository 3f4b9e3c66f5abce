from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from pipeline.backends.base.artifact import Artifact
from pipeline.cli.params import Params
from pipeline.compile.records import CompiledMetrics
from pipeline.core.errors import PipelineError
from pipeline.data.recall import Recall
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.latency.records import (
    BENCHMARK,
    BenchmarkRecord,
    BenchmarkRow,
    Conditions,
    Latency,
    Throughput,
)
from pipeline.report.recommendation import cards, unsure, verdict
from pipeline.report.results import UNTIMED, Row, best_per_backend, gather, numbered_notes, table

STUDENT = "mnv4_small_050"


def record(**rows: BenchmarkRow) -> None:
    """metrics/benchmark.json with rows by backend, at the precision of the workspace."""
    precisions = {"onnxruntime": "fp32", "tensorrt": "fp16"}
    BenchmarkRecord(
        fingerprint=read_fingerprint(),
        reference=measured(1.0),
        reference_digest="d" * 64,
        rows={f"{STUDENT}/{name}/{precisions[name]}": row for name, row in rows.items()},
    ).write(BENCHMARK)


def measured(p50: float) -> BenchmarkRow:
    return BenchmarkRow(
        status="measured",
        latency_ms=Latency(p50=p50, p90=2 * p50, p99=3 * p50),
        ratio_to_reference=p50,
        threads=1,
        n=10,
    )


NO_GPU = BenchmarkRow(status="not_measured", reason="no NVIDIA GPU here", threads=1)


def change(backend: str, precision: str, **values: object) -> None:
    file = Artifact(STUDENT, backend, precision).metrics
    CompiledMetrics.read(file).model_copy(update=values).write(file)


def text(rows: list) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table(rows))
    return capture.get()


def test_rows_are_what_params_ask_for_whatever_lies_on_disk(workspace: Params) -> None:
    stale = Artifact("another", "onnxruntime", "fp32").metrics
    CompiledMetrics.read(Artifact(STUDENT, "onnxruntime", "fp32").metrics).write(stale)
    rows = gather(workspace)
    assert [row.artifact for row in rows] == [
        Artifact(STUDENT, "onnxruntime", "fp32"),
        Artifact(STUDENT, "tensorrt", "fp16"),
    ]


def test_a_measured_row_has_its_numbers(workspace: Params) -> None:
    record(onnxruntime=measured(0.25), tensorrt=NO_GPU)
    row = gather(workspace)[0]
    assert (row.status, row.p50, row.within_limits, row.notes) == ("measured", 0.25, True, ())
    shown = text([row])
    assert all(figure in shown for figure in ("0.250", "0.500", "1.0000", "+0.0000"))


def test_a_row_that_was_not_measured_has_a_reason_and_no_latency(workspace: Params) -> None:
    record(onnxruntime=measured(0.25), tensorrt=NO_GPU)
    row = gather(workspace)[1]
    assert (row.status, row.p50) == ("not_measured", None)
    assert row.notes == (
        "latency not measured: no NVIDIA GPU here",
        "accuracy measured with onnxruntime 1.32.0 on the same graph",
    )
    assert "not measured [1, 2]" in text([row]) and "[1] latency not measured" in text([row])


def test_a_failed_row_is_shown(workspace: Params) -> None:
    record(onnxruntime=BenchmarkRow(status="failed", reason="boom [x]", threads=1), tensorrt=NO_GPU)
    shown = text(gather(workspace))
    assert "failed [1]" in shown and "boom [x]" in shown


def test_what_is_not_there_yet_says_so(workspace: Params) -> None:
    assert [row.reason for row in gather(workspace)] == ["not benchmarked yet, run `dvc repro`"] * 2
    record(onnxruntime=measured(0.25), tensorrt=NO_GPU)
    Artifact(STUDENT, "onnxruntime", "fp32").metrics.unlink()
    row = gather(workspace)[0]
    assert (row.status, row.reason) == ("missing", "not compiled yet, run `dvc repro`")
    assert row.p50 is None and row.excess is None and not row.within_limits


def test_a_file_that_is_no_record_is_an_error(workspace: Params) -> None:
    Artifact(STUDENT, "onnxruntime", "fp32").metrics.write_text('{"top1": 2')
    with pytest.raises(PipelineError, match="CompiledMetrics"):
        gather(workspace)


def test_the_limits_are_those_of_params(workspace: Params) -> None:
    record(onnxruntime=measured(0.25), tensorrt=NO_GPU)
    limits = workspace.limits
    change("onnxruntime", "fp32", top1_drop=limits.max_top1_drop, agreement=limits.min_agreement)
    assert gather(workspace)[0].within_limits
    text = "its top-1 drops by more than 0.01"
    for lost, excess in ((6, text), (5, f"{text}, which may be chance")):  # p = 0.03 and 0.06
        change("onnxruntime", "fp32", top1_drop=limits.max_top1_drop + 0.001, lost=lost)
        row = gather(workspace)[0]
        assert row.excess == (excess,)
    assert row.cells()["Limits"] == "outside"
    change("onnxruntime", "fp32", agreement=limits.min_agreement - 0.001)
    assert len(gather(workspace)[0].notes) == 2


def test_the_best_is_the_fastest_within_the_limits(workspace: Params) -> None:
    record(onnxruntime=measured(0.25), tensorrt=NO_GPU)
    row, unmeasured = gather(workspace)
    int8, fp16 = (replace(row.artifact, precision=other) for other in ("int8", "fp16"))
    slower = replace(row, artifact=int8, latency=measured(0.5))
    faster = replace(row, artifact=fp16, latency=measured(0.1))
    outside = replace(faster, excess=("too far off",))
    best = best_per_backend([slower, row, outside, unmeasured])
    assert best == {"onnxruntime": row, "tensorrt": None}
    assert best_per_backend([row, faster])["onnxruntime"] is faster


def under(params: Params, **limits: float) -> list[Row]:
    """The rows of ONNX Runtime (0.25 ms) and TensorRT (not measured) under these limits."""
    record(onnxruntime=measured(0.25), tensorrt=NO_GPU)
    its = params.limits.model_copy(update=limits)
    return gather(params.model_copy(update={"limits": its}))


def test_a_latency_limit_is_kept_by_what_was_measured_within_it(workspace: Params) -> None:
    row, unmeasured = under(workspace, max_p50_ms=0.25)
    assert row.within_limits and not unmeasured.within_limits
    assert unmeasured.excess == (UNTIMED,)
    assert unmeasured.cells()["Limits"] == "outside"
    row, _ = under(workspace, max_p50_ms=0.2)
    assert row.excess == ("its p50 is above 0.2 ms",)
    assert row.obstacles == ("outside the limits of params.yaml: its p50 is above 0.2 ms",)
    assert best_per_backend([row]) == {"onnxruntime": None}
    assert all(row.within_limits for row in under(workspace))


def test_a_size_limit_counts_thousands_of_bytes(workspace: Params) -> None:
    change("onnxruntime", "fp32", size_bytes=2_500)
    assert under(workspace, max_kb=2.5)[0].within_limits
    assert under(workspace, max_kb=2.4)[0].excess == ("it is larger than 2.4 kB",)


def test_the_verdict_names_the_limits_the_fastest_and_why_there_is_none(workspace: Params) -> None:
    rows = under(workspace, max_p50_ms=0.3)
    limits = workspace.limits.model_copy(update={"max_p50_ms": 0.3})
    said = verdict(rows, limits)
    assert said["count"] == "1 of 2" and said["fastest"].startswith(f"{rows[0].name}, p50 0.250")
    bounds = "p50 at most 0.3 ms, top-1 drop at most 0.01, agreement at least 0.95"
    assert said["limits"] == bounds
    ours, tensorrt = cards(rows)
    assert (ours.name, ours.why, ours.unmeasured) == (f"{STUDENT} fp32", "", "")
    assert (tensorrt.name, tensorrt.why) == ("", "latency not measured: no NVIDIA GPU here")
    assert tensorrt.unmeasured == "latency not measured: no NVIDIA GPU here"


def test_what_a_small_test_split_cannot_decide_is_said(workspace: Params) -> None:
    rows = gather(workspace)
    (drop,) = unsure(rows, workspace)
    assert drop.startswith("test has 30 images, too few to decide limits.max_top1_drop (0.01)")
    strict = workspace.limits.model_copy(update={"min_agreement": 0.97})
    (_, agreement) = unsure(rows, workspace.model_copy(update={"limits": strict}))
    shares = Conditions(seconds=1.0, others=0.4)
    record(onnxruntime=measured(0.2), tensorrt=NO_GPU)
    busy = BenchmarkRecord.read(BENCHMARK).model_copy(update={"conditions": (shares,)})
    assert unsure(rows, workspace, busy)[-1] == (
        "the latencies are those of a busy machine: other processes took 40% of the measuring "
        "CPUs' time"
    )
    assert agreement == (
        "one answer of 30 that is not the float student's breaks limits.min_agreement (0.97)"
    )


def test_what_may_be_no_better_than_naming_one_class_is_said(workspace: Params) -> None:
    record(onnxruntime=measured(0.2), tensorrt=NO_GPU)
    for right, told in (((10, 4, 4), False), ((10, 3, 1), True)):  # 18 and 14 of 30
        recall = Recall(images=(10,) * 3, right=right)
        change("onnxruntime", "fp32", top1=recall.top1, recall=recall)
        said = " ".join(unsure(gather(workspace), workspace))
        naming = f"nothing shows that {STUDENT} ONNX Runtime fp32 is better than naming one class"
        assert (naming in said) == told


def test_the_table_has_throughput_where_it_was_measured(workspace: Params) -> None:
    many = Throughput(images_per_second=12345.6, batch=64, threads=2)
    record(onnxruntime=measured(0.25).model_copy(update={"throughput": many}), tensorrt=NO_GPU)
    cells = [row.cells()["Images/s"] for row in gather(workspace)]
    assert cells == ["12,346", "–"]  # noqa: RUF001


def test_a_latency_without_a_throughput_says_why(workspace: Params) -> None:
    alone = measured(0.25).model_copy(update={"throughput_reason": "out of memory at batch 64"})
    record(onnxruntime=alone, tensorrt=NO_GPU)
    row = gather(workspace)[0]
    assert row.notes == ("no throughput: out of memory at batch 64",)
    assert row.within_limits and row.cells()["Images/s"] == "–"  # noqa: RUF001


def beside_int8(params: Params, **latencies: BenchmarkRow) -> list[Row]:
    """The rows of ONNX Runtime, LiteRT and TensorRT with latencies by `backend_precision`."""
    asked: dict[str, list[str]] = {}
    rows = {}
    for name, latency in latencies.items():
        backend, precision = name.split("_")
        asked.setdefault(backend, []).append(precision)
        rows[f"{STUDENT}/{backend}/{precision}"] = latency
        fp32 = CompiledMetrics.read(Artifact(STUDENT, "onnxruntime", "fp32").metrics)
        fp32.write(Artifact(STUDENT, backend, precision).metrics)
    record()
    BenchmarkRecord.read(BENCHMARK).model_copy(update={"rows": rows}).write(BENCHMARK)
    tree = params.model_dump()
    tree["backends"] = {"enabled": list(asked)} | {
        backend: {"precisions": precisions} for backend, precisions in asked.items()
    }
    return gather(Params.model_validate(tree))


def slower(rows: list[Row]) -> list[str]:
    return [note for row in rows for note in row.notes if "slower" in note]


@pytest.mark.parametrize(("p50", "told"), [(0.2, False), (0.257, False), (0.258, True)])
def test_int8_that_is_clearly_slower_than_float_says_so(
    workspace: Params, p50: float, told: bool
) -> None:
    rows = beside_int8(workspace, onnxruntime_fp32=measured(0.25), onnxruntime_int8=measured(p50))
    note = "int8 is slower here than fp32: p50 0.258 against 0.250 ms"
    assert slower(rows) == [note] * told
    assert (note in rows[1].notes) == told


def test_int8_is_compared_with_the_fastest_float_of_its_own_backend(workspace: Params) -> None:
    rows = beside_int8(
        workspace,
        onnxruntime_fp32=measured(0.1),
        tflite_fp32=measured(0.3),
        tflite_fp16=measured(0.2),
        tflite_int8=measured(0.25),
    )
    assert slower(rows) == ["int8 is slower here than fp16: p50 0.250 against 0.200 ms"]


def test_what_was_not_measured_is_slower_than_nothing(workspace: Params) -> None:
    assert not slower(beside_int8(workspace, onnxruntime_fp32=NO_GPU, onnxruntime_int8=measured(1)))
    assert not slower(beside_int8(workspace, onnxruntime_fp32=measured(1), onnxruntime_int8=NO_GPU))
    assert not slower(beside_int8(workspace, onnxruntime_int8=measured(1)))


def test_equal_notes_share_a_number(workspace: Params) -> None:
    rows = gather(workspace)
    notes = numbered_notes([*rows, *rows])
    assert list(notes.values()) == [1, 2]
