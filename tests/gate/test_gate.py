"""The gate as a CI job meets it: records on disk, one command, an exit code."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.backends.base.artifact import COMPILED, Artifact
from pipeline.backends.base.records import ArtifactRecord, ExecutionReport, FloatLayer, Partitions
from pipeline.bundle.devices import import_results
from pipeline.cli.commands import main
from pipeline.cli.params import Params, load_params
from pipeline.compile.evidence import Evidence
from pipeline.compile.records import CompiledMetrics
from pipeline.core.files import sha256
from pipeline.core.records import METRICS
from pipeline.data.recall import Recall
from pipeline.data.records import Manifest
from pipeline.gate import accuracy, latency
from pipeline.gate.accuracy import Flips
from pipeline.gate.latency import RERUN, Slowdown
from pipeline.gate.verdict import Outcome
from pipeline.latency.conditions import Watch
from pipeline.latency.records import (
    BENCHMARK,
    BenchmarkRecord,
    BenchmarkRow,
    Conditions,
    Fingerprint,
    Latency,
)
from pipeline.latency.statistics import paired_log_ratio

ROOT = Path(__file__).parents[2]
STUDENT = "mnv4_small_050"
FLOAT, INT8, GPU = (
    f"{STUDENT}/{rest}" for rest in ("onnxruntime/fp32", "tflite/int8", "tensorrt/fp16")
)
IMAGES = 2000
ROUNDS = 60
NO_GPU = BenchmarkRow(status="not_measured", reason="no NVIDIA GPU here", threads=1)
MACHINE = Fingerprint(
    cpu="one", architecture="x86_64", instruction_sets=(), cores=2, memory_gib=8, kernel="6",
    governor=None, accelerators=(), runtimes={"onnxruntime": "1"},
)  # fmt: skip
EXECUTION = ExecutionReport(
    macs=1000,
    in_float=(FloatLayer(name="stem", macs=10),),
    per_channel=True,
    partitions=Partitions(delegated=1, builtin={"PAD int8": 1}),
    input_type="uint8",
    output_type="float32",
)


def row(p50: float, seed: int, noise: float = 0.005) -> BenchmarkRow:
    times = p50 * np.exp(np.random.default_rng(seed).normal(0, noise, 10))
    return BenchmarkRow(
        status="measured",
        latency_ms=Latency(p50=p50, p90=2 * p50, p99=3 * p50),
        threads=1,
        n=200,
        rounds_ms=tuple(times.tolist()),
    )


def measure(seed: int, machine: Fingerprint = MACHINE, pace: float = 1.0, **slow: float) -> None:
    """metrics/benchmark.json of a run; `fp32` and `int8` are as much slower as `slow` says."""
    BenchmarkRecord(
        fingerprint=machine,
        reference=row(0.7 * pace, seed),
        reference_digest="d" * 64,
        rows={
            FLOAT: row(0.6 * pace * slow.get("fp32", 1.0), seed + 1),
            INT8: row(0.4 * pace * slow.get("int8", 1.0), seed + 2),
            GPU: NO_GPU,
        },
    ).write(BENCHMARK)


def change_row(key: str, new: BenchmarkRow | None) -> None:
    record = BenchmarkRecord.read(BENCHMARK)
    rows = {name: old for name, old in record.rows.items() if name != key}
    record.model_copy(update={"rows": rows | ({key: new} if new else {})}).write(BENCHMARK)


def answer(
    key: str,
    lost: int = 0,
    won: int = 0,
    rare: int = 0,
    test: str = "1",
    execution: ExecutionReport = EXECUTION,
    **metrics: Any,
) -> None:
    """The records of an artifact that is right on all but 200 images, give or take some.

    Of the 40 images of the class b, `rare` more are wrong, and as many more of a are right.
    """
    right = np.arange(IMAGES) >= 200
    right[:won] = True
    right[IMAGES - lost :] = False
    labels = (np.arange(IMAGES) % 50 == 0).astype(np.int64)
    right[np.flatnonzero(right & (labels == 1))[:rare]] = False
    right[np.flatnonzero(~right & (labels == 0))[:rare]] = True
    student, backend, precision = key.split("/")
    artifact = ArtifactRecord(
        student=student, backend=backend, precision=precision, model_file="model", quantizer=None,
        weights_digest="e" * 64, calibration_digest=None, image_size=8,
        stored_size=8, channels=3,
        classes=("a", "b"), execution=execution, versions={},
        digests={"model": metrics.pop("digest", "a" * 64)},
    )  # fmt: skip
    manifest = Manifest(
        source="drawn", licence="none", classes=("a", "b"), image_size=8,
        stored_size=8, channels=3, counts={},
        digests={"test_images.npy": test * 64, "test_labels.npy": "2" * 64},
        calibration_digest="", mean=(0.0,), std=(1.0,), rejected=(),
    )  # fmt: skip
    logits = np.eye(2, dtype=np.float32)[labels ^ ~right]
    evidence = Evidence.of(artifact, manifest, logits, labels)
    evidence.write(Artifact(student, backend, precision).evidence)
    figures: dict[str, Any] = {
        "top1": float(right.mean()), "balanced_accuracy": 0.9, "recall": Recall.of(logits, labels),
        "top1_drop": 0.0, "agreement": 0.99, "lost": 0, "won": 0, "max_logit_error": 0.0,
        "mean_logit_error": 0.0, "snr_db": None, "images": IMAGES, "size_bytes": 100_000,
        "int8_mac_share": 0.99, "evaluated_with": "it",
    }  # fmt: skip
    CompiledMetrics(**figures | metrics).write(Artifact(student, backend, precision).metrics)


def commit(folder: str = ".") -> None:
    identity = ["-c", "user.name=gate", "-c", "user.email=gate@example.org"]
    for words in (
        ["init", "-q"],
        ["add", "-A"],
        [*identity, "commit", "--allow-empty", "-qm", "recorded"],
    ):
        subprocess.run(["git", *words], cwd=folder, check=True)


def set_group(group: str, **values: object) -> None:
    file = Path("params.yaml")
    tree = yaml.safe_load(file.read_text())
    tree[group] |= values
    file.write_text(yaml.safe_dump(tree))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is a git repository in which three artifacts are recorded."""
    monkeypatch.chdir(tmp_path)
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    asked = {"onnxruntime": ["fp32"], "tflite": ["int8"], "tensorrt": ["fp16"]}
    tree["students"]["enabled"] = [STUDENT]
    tree["backends"] = {"enabled": list(asked)} | {
        name: {"precisions": precisions} for name, precisions in asked.items()
    }
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    for key in (FLOAT, INT8, GPU):
        answer(key)
    measure(seed=0)
    commit()
    return tmp_path


@pytest.fixture
def gate(project: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:  # noqa: ARG001
    """Runs the gate; the verdict with the exit code that really came."""

    def run(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        code = main(["gate", "--json", *arguments])
        verdict: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert verdict["exit_code"] == code
        return verdict

    return run


Gate = Callable[..., dict[str, Any]]


def found(verdict: dict[str, Any], outcome: str) -> list[tuple[str, str]]:
    return [(f["key"], f["measure"]) for f in verdict["findings"] if f["outcome"] == outcome]


def only(verdict: dict[str, Any], outcome: str) -> dict[str, Any]:
    """The one finding with the verdict's outcome, `outcome`; all others passed."""
    assert verdict["outcome"] == outcome
    (finding,) = [f for f in verdict["findings"] if f["outcome"] != "passed"]
    assert finding["outcome"] == outcome
    return dict(finding)


def test_what_did_not_change_passes(gate: Gate) -> None:
    verdict = gate()
    assert (verdict["outcome"], verdict["exit_code"]) == ("passed", 0)
    assert {f["measure"] for f in verdict["findings"] if f["key"] == INT8} == {
        "limits", "top-1", "recall", "size", "int8 share", "float layers", "partitions", "latency"
    }  # fmt: skip


def test_the_same_artifacts_measured_again_pass(gate: Gate) -> None:
    measure(seed=10)
    verdict = gate()
    assert verdict["exit_code"] == 0, found(verdict, "inconclusive")


def test_a_slow_down_is_a_regression_whose_command_times_it_again(gate: Gate) -> None:
    measure(seed=10, int8=1.25)
    finding = only(gate(), "regression")
    assert (finding["key"], finding["measure"]) == (INT8, "latency")
    assert (finding["baseline"], finding["candidate"]) == (0.4, 0.5)
    assert finding["command"].endswith(f"--only {INT8} --rerun")
    assert gate()["exit_code"] == 1


def test_a_slow_down_that_two_runs_cannot_tell_from_chance_is_inconclusive(gate: Gate) -> None:
    measure(seed=10, fp32=1.08)
    finding = only(gate(), "inconclusive")
    assert (finding["key"], finding["measure"]) == (FLOAT, "latency")
    assert "--rerun" in finding["command"] and gate()["exit_code"] == 3
    set_group("gate", inconclusive="pass")
    assert gate()["exit_code"] == 0 and gate()["outcome"] == "inconclusive"


def test_a_large_share_of_next_to_nothing_is_no_regression(gate: Gate) -> None:
    measure(seed=10, int8=1.25)
    set_group("gate", max_slowdown_ms=0.2)
    assert gate()["outcome"] == "passed"


def test_on_another_machine_ratios_to_the_reference_are_compared(gate: Gate) -> None:
    other = MACHINE.model_copy(update={"kernel": "another"})
    measure(seed=10, machine=other, pace=1.08)
    assert gate()["outcome"] == "passed"
    set_group("gate", max_slowdown_ms=100.0)  # of another machine, milliseconds excuse nothing
    measure(seed=10, machine=other, pace=1.08, int8=1.25)
    assert "two machines" in only(gate(), "regression")["detail"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cpu": "another"}, f"the CPUs are {MACHINE.cpu} and another"),
        ({"instruction_sets": tuple("dcba")}, "only one machine has a, b, c, ..."),
        ({"accelerators": ("a GPU",)}, "only one machine has a GPU"),
    ],
)
@pytest.mark.parametrize("slow", [0.5, 1.0, 2.0])
def test_ratios_of_other_hardware_are_told_and_prove_nothing(
    gate: Gate, change: dict, said: str, slow: float
) -> None:
    measure(seed=10, machine=MACHINE.model_copy(update=change), int8=slow)
    finding = next(f for f in gate()["findings"] if f["outcome"] == "inconclusive")
    assert said in finding["detail"] and "--rerun" in finding["command"]
    latencies = [f for f in gate()["findings"] if f["measure"] == "latency"]
    assert {f["outcome"] for f in latencies} == {"inconclusive"}
    told = float(latencies[1]["detail"].partition("%")[0])
    assert latencies[1]["key"] == INT8 and told == pytest.approx(100 * (slow - 1), abs=3)


def test_a_pace_that_the_reference_shares_is_no_slow_down(gate: Gate) -> None:
    measure(seed=10, pace=1.08)
    assert gate()["outcome"] == "passed"


@pytest.mark.parametrize("pace", [0.8, 1.2])
def test_a_machine_of_another_pace_proves_nothing(gate: Gate, pace: float) -> None:
    measure(seed=10, pace=pace, int8=1.5)
    latencies = [f for f in gate()["findings"] if f["measure"] == "latency"]
    assert {f["outcome"] for f in latencies} == {"inconclusive"}
    assert all("the reference itself took 0.700 ms" in f["detail"] for f in latencies)


@pytest.mark.parametrize(("noise", "outcome"), [(0.005, "passed"), (0.1, "inconclusive")])
def test_a_restless_machine_acquits_nothing(gate: Gate, noise: float, outcome: str) -> None:
    """Its own rounds tell how far a run can be from the next, however many they are."""
    quick = row(0.398, 12).model_copy(
        update={"rounds_ms": tuple(0.398 * np.exp(np.random.default_rng(3).normal(0, noise, 1000)))}
    )
    record = BenchmarkRecord.read(BENCHMARK)
    calm = record.reference.model_copy(update={"rounds_ms": (0.7,) * 1000})
    record.model_copy(update={"reference": calm}).write(BENCHMARK)
    change_row(INT8, quick)
    finding = next(f for f in gate()["findings"] if (f["key"], f["measure"]) == (INT8, "latency"))
    assert finding["outcome"] == outcome, finding


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reference_digest": "e" * 64}, "different reference models"),
        (
            {"reference": row(0.7, 3).model_copy(update={"rounds_ms": (0.7,) * 9})},
            "differ in the number of rounds",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_invalid(gate: Gate, change: dict, said: str) -> None:
    measure(seed=10)
    BenchmarkRecord.read(BENCHMARK).model_copy(update=change).write(BENCHMARK)
    verdict = gate()
    assert verdict["exit_code"] == 2
    assert found(verdict, "invalid") == [(FLOAT, "latency"), (INT8, "latency")]
    assert all(said in f["detail"] for f in verdict["findings"] if f["outcome"] == "invalid")


def test_other_threads_are_told(gate: Gate) -> None:
    change_row(INT8, row(0.4, 5).model_copy(update={"threads": 4}))
    assert "1 and on 4 threads" in only(gate(), "invalid")["detail"]


@pytest.mark.parametrize("slow", [1.0, 1.4])
def test_a_run_that_others_disturbed_is_neither_passed_nor_a_regression(
    gate: Gate, slow: float
) -> None:
    measure(seed=7, int8=slow)
    calm = Conditions(seconds=1.0, others=0.0)
    spoiled = Conditions(seconds=1.0, others=0.5, spoiled="other processes took half of it")
    record = BenchmarkRecord.read(BENCHMARK)
    dropped = spoiled.model_copy(update={"kept": False})
    record.model_copy(update={"conditions": (calm, dropped)}).write(BENCHMARK)
    assert gate()["exit_code"] == (0 if slow == 1 else 1)
    record.model_copy(update={"conditions": (calm, spoiled)}).write(BENCHMARK)
    found = gate()
    latencies = [one for one in found["findings"] if one["measure"] == "latency"]
    assert {one["outcome"] for one in latencies} == {"inconclusive"} and found["exit_code"] == 3
    said = "of the candidate, 1 of 2 rounds are spoiled: other processes took half of it"
    assert all(
        one["detail"].endswith(f"{said}; `--rerun` measures both side by side") for one in latencies
    )


def test_a_run_without_rounds_cannot_be_tested(gate: Gate) -> None:
    record = BenchmarkRecord.read(BENCHMARK)
    bare = {"rounds_ms": ()}
    rows = {key: old.model_copy(update=bare) for key, old in record.rows.items()}
    reference = record.reference.model_copy(update=bare)
    record.model_copy(update={"rows": rows, "reference": reference}).write(BENCHMARK)
    verdict = gate()
    assert verdict["exit_code"] == 3
    assert found(verdict, "inconclusive") == [(FLOAT, "latency"), (INT8, "latency")]


def test_many_lost_answers_are_a_regression(gate: Gate) -> None:
    answer(FLOAT, lost=40, won=5)
    finding = only(gate(), "regression")
    assert (finding["key"], finding["measure"]) == (FLOAT, "top-1")
    assert "40 answers lost, 5 won of 2,000" in finding["detail"]
    assert (finding["baseline"], finding["candidate"]) == (0.9, 0.8825)


def test_as_many_won_as_lost_pass_and_so_do_gains(gate: Gate) -> None:
    answer(FLOAT, lost=40, won=40)
    answer(INT8, won=60)
    assert gate()["exit_code"] == 0


def test_a_loss_beyond_the_limit_that_may_be_chance_is_inconclusive(gate: Gate) -> None:
    answer(FLOAT, lost=40, won=25)
    finding = only(gate(), "inconclusive")
    assert finding["measure"] == "top-1" and "found with probability 0." in finding["detail"]
    answer(FLOAT, lost=40, won=30)  # of 2,000: 0.005, just the limit
    only(gate(), "inconclusive")
    answer(FLOAT, lost=40, won=31)
    assert gate()["exit_code"] == 0
    answer(FLOAT, lost=40, won=25)
    set_group("gate", max_top1_loss=0.01)
    assert gate()["exit_code"] == 0
    set_group("gate", max_top1_loss=0)
    answer(FLOAT, lost=40, won=40)
    assert gate()["exit_code"] == 0
    answer(FLOAT, lost=1)
    only(gate(), "inconclusive")


def test_the_power_is_told_where_everything_passes(gate: Gate) -> None:
    notes = [note["text"] for note in gate()["notes"]]
    assert any("a loss of 0.005 top-1 is found with a probability of at least" in n for n in notes)


@pytest.mark.parametrize(
    ("figures", "limits", "said"),
    [
        ({"top1_drop": 0.02}, {}, "drops by more than 0.01"),
        ({"agreement": 0.9}, {}, "less than 95%"),
        ({}, {"min_top1": 0.95}, "below 0.95"),
    ],
)
def test_limits_hold_whatever_the_baseline_was(
    gate: Gate, figures: dict, limits: dict, said: str
) -> None:
    answer(FLOAT, **figures)
    commit()
    set_group("limits", **limits)
    verdict = gate("--only", FLOAT)
    finding = only(verdict, "regression")
    assert finding["measure"] == "limits" and said in finding["detail"]


def test_answers_to_other_images_are_not_compared(gate: Gate) -> None:
    answer(INT8, lost=100, test="9")
    finding = only(gate(), "invalid")
    assert "test splits differ" in finding["detail"] and gate()["exit_code"] == 2


def test_records_of_two_runs_are_told(gate: Gate) -> None:
    answer(INT8, top1=0.95)
    assert "records of two runs" in only(gate(), "invalid")["detail"]


def test_answers_that_the_baseline_lacks_are_inconclusive(gate: Gate) -> None:
    Artifact(STUDENT, "tflite", "int8").evidence.unlink()
    finding = only(gate(), "regression")
    assert (finding["key"], finding["measure"]) == (INT8, "top-1")
    commit()
    assert gate()["exit_code"] == 0  # neither side has them, and the metrics are equal
    answer(INT8, lost=1)
    assert only(gate(), "inconclusive")["measure"] == "top-1"


FLOAT_LAYERS = (*EXECUTION.in_float, FloatLayer(name="head", macs=5))
PARTED = Partitions(delegated=2, builtin={"PAD int8": 1})
LEFT = Partitions(delegated=1, builtin={"PAD int8": 1, "CAST int8": 1})


@pytest.mark.parametrize(
    ("changes", "measure", "said"),
    [
        ({"size_bytes": 103_000}, "size", "+3.0%, limit 2.0%"),
        ({"int8_mac_share": 0.98}, "int8 share", ""),
        ({"in_float": FLOAT_LAYERS}, "float layers", "new in float: head (5 MACs)"),
        ({"partitions": PARTED}, "partitions", ""),
        ({"partitions": LEFT}, "partitions", "1 operators before, 2 now"),
    ],
)
def test_what_is_deterministic_needs_no_test(
    gate: Gate, changes: dict[str, Any], measure: str, said: str
) -> None:
    execution = EXECUTION.model_copy(
        update={k: v for k, v in changes.items() if k in ExecutionReport.model_fields}
    )
    metrics = {k: v for k, v in changes.items() if k in CompiledMetrics.model_fields}
    answer(INT8, execution=execution, **metrics)
    finding = only(gate(), "regression")
    assert (finding["key"], finding["measure"]) == (INT8, measure) and said in finding["detail"]


def test_float_artifacts_may_compute_in_float(gate: Gate) -> None:
    answer(
        FLOAT, execution=EXECUTION.model_copy(update={"in_float": FLOAT_LAYERS}), size_bytes=101_000
    )
    assert gate()["exit_code"] == 0


def test_other_files_are_noted(gate: Gate) -> None:
    answer(INT8, digest="b" * 64)
    measure(seed=10)
    verdict = gate()
    assert verdict["outcome"] == "passed"
    assert any("compiled files" in n["text"] and n["key"] == INT8 for n in verdict["notes"])


def test_a_latency_of_the_files_before_says_nothing_of_new_ones(gate: Gate) -> None:
    answer(INT8, digest="b" * 64)
    finding = only(gate(), "inconclusive")
    assert (finding["key"], finding["measure"]) == (INT8, "latency")
    assert finding["command"] == "dvc repro benchmark"


def test_a_missing_row_is_a_regression_and_a_new_one_is_not(gate: Gate) -> None:
    Artifact(STUDENT, "tflite", "int8").metrics.unlink()
    finding = only(gate(), "regression")
    assert (finding["key"], finding["measure"]) == (INT8, "row")
    assert finding["command"] == f"dvc repro compile@tflite-{STUDENT}"
    change_row(INT8, None)
    assert only(gate(), "regression")["measure"] == "row"
    commit()
    answer(INT8)
    verdict = gate()
    assert verdict["outcome"] == "passed" and (INT8, "row") in found(verdict, "passed")


def test_a_new_row_keeps_the_limits(gate: Gate) -> None:
    change_row(INT8, None)
    commit()
    answer(INT8, agreement=0.5)
    measure(seed=0)
    assert only(gate(), "regression")["measure"] == "limits"


def test_files_that_nobody_asks_for_are_ignored(gate: Gate) -> None:
    answer(f"{STUDENT}/openvino/int8", agreement=0.5)
    verdict = gate()
    assert verdict["exit_code"] == 0 and all(
        "openvino" not in f["key"] for f in verdict["findings"]
    )


@pytest.mark.parametrize(
    ("status", "outcome"), [("failed", "regression"), ("not_measured", "inconclusive")]
)
def test_what_was_measured_and_is_not_now_never_passes(
    gate: Gate, status: Any, outcome: str
) -> None:
    change_row(INT8, BenchmarkRow(status=status, reason="boom", threads=1))
    finding = only(gate(), outcome)
    assert finding["measure"] == "latency" and "boom" in finding["detail"]


def test_what_was_measured_in_neither_is_noted(gate: Gate) -> None:
    verdict = gate()
    assert (GPU, "latency") not in [(f["key"], f["measure"]) for f in verdict["findings"]]
    assert any(n["key"] == GPU and "no NVIDIA GPU" in n["text"] for n in verdict["notes"])


def test_without_a_benchmark_every_latency_is_missing(gate: Gate) -> None:
    BENCHMARK.unlink()
    verdict = gate()
    assert verdict["exit_code"] == 1
    assert sorted(found(verdict, "regression")) == [(FLOAT, "latency"), (INT8, "latency")]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b'{"top1": "high"}', b"null", b'{"a": NaN}']
)
@pytest.mark.parametrize(
    "file",
    [
        Artifact(STUDENT, "tflite", "int8").metrics,
        Artifact(STUDENT, "tflite", "int8").evidence,
        BENCHMARK,
    ],
)
def test_a_file_that_is_no_record_is_invalid(gate: Gate, file: Path, content: bytes) -> None:
    file.write_bytes(content)
    verdict = gate()
    assert verdict["exit_code"] == 2 and found(verdict, "regression") == []
    invalid = [f for f in verdict["findings"] if f["outcome"] == "invalid"]
    assert len(invalid) == 1 and str(file) in invalid[0]["detail"]
    commit()
    answer(INT8)
    measure(seed=10)
    assert "baseline: " in only(gate("--only", INT8), "invalid")["detail"]


@pytest.mark.parametrize("options", [(), ("--rerun", "--baseline-models", "models/compiled")])
def test_a_baseline_of_an_older_version_is_one_finding(gate: Gate, options: tuple[str]) -> None:
    """Its records are JSON, but have other fields; nothing but the limits can be judged."""
    files = [file for file in METRICS.rglob("*.json") if file.name != "fingerprint.json"]
    records = {file: file.read_bytes() for file in files}
    for file, content in records.items():
        record = json.loads(content)
        file.write_text(json.dumps(record[0] if isinstance(record, list) else {"rows": {}}))
    commit()
    for file, content in records.items():
        file.write_bytes(content)
    Path(COMPILED).mkdir(parents=True)
    finding = only(gate(*options), "invalid")
    assert (finding["key"], finding["measure"]) == ("*", "record")
    assert "baseline: recorded by an older version (7 file(s), metrics/" in finding["detail"]
    assert finding["detail"].endswith("run the baseline again")
    assert {f["measure"] for f in gate()["findings"]} == {"limits", "record"}


def test_times_and_answers_that_cannot_be_are_no_record(gate: Gate) -> None:
    text = BENCHMARK.read_text()
    first = str(BenchmarkRecord.read(BENCHMARK).rows[INT8].rounds_ms[0])
    (benchmark,) = json.loads(text.replace(first, "-1.0"))
    del benchmark["sha256"]  # as if it had been recorded so
    BENCHMARK.write_text(json.dumps([benchmark]))
    assert "greater than 0" in only(gate(), "invalid")["detail"]
    BENCHMARK.write_text(text)
    file = Artifact(STUDENT, "tflite", "int8").evidence
    (evidence,) = json.loads(file.read_text())
    del evidence["sha256"]
    for correct in ("%%", evidence["correct"][:8]):
        file.write_text(json.dumps([evidence | {"correct": correct}]))
        assert "`correct`" in only(gate(), "invalid")["detail"]


def test_a_revision_a_folder_and_a_saved_file_are_the_same_baseline(gate: Gate) -> None:
    assert main(["gate", "--save", "saved.json"]) == 0
    shutil.copytree(METRICS, "before/metrics")
    measure(seed=10, int8=1.25)
    answer(FLOAT, lost=40)
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    judged = [gate("--baseline", name) for name in ("HEAD", head, "before", "saved.json")]
    stripped = [[{**f, "command": ""} for f in verdict["findings"]] for verdict in judged]
    assert all(findings == stripped[0] for findings in stripped)
    assert judged[0]["baseline"] == head[:10] and judged[0]["exit_code"] == 1


@pytest.mark.parametrize("baseline", ["nowhere", "--output=x", "", "params.yaml", "metrics"])
def test_a_baseline_that_is_none_is_invalid(gate: Gate, baseline: str) -> None:
    verdict = gate(f"--baseline={baseline}")
    assert verdict["exit_code"] == 2 and verdict["findings"][0]["measure"] == "gate"
    assert not Path("x").exists()


def test_outside_of_git_and_with_wrong_params_it_is_invalid(gate: Gate) -> None:
    set_group("gate", max_slowdwn=1)
    assert "did you mean `max_slowdown`" in only(gate(), "invalid")["detail"]
    subprocess.run(["git", "checkout", "-q", "params.yaml"], check=True)
    assert gate()["exit_code"] == 0
    shutil.rmtree(".git")
    detail = only(gate(), "invalid")["detail"]
    assert "this folder is no git repository; name a folder with metrics/, or a file" in detail


def test_a_repository_of_another_user_is_told_with_the_remedy(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    detail = only(gate(), "invalid")["detail"]
    assert "belongs to another user; `git config --global --add safe.directory " in detail


def test_one_artifact_is_shown_as_judged_among_all(gate: Gate) -> None:
    measure(seed=10, int8=1.25)
    whole, part, other = gate(), gate("--only", INT8), gate("--only", FLOAT)
    assert part["findings"] == [f for f in whole["findings"] if f["key"] == INT8]
    assert (part["exit_code"], other["exit_code"]) == (1, 0)
    assert f"did you mean `{INT8}`?" in only(gate("--only", INT8[:-1]), "invalid")["detail"]


def test_people_read_the_verdict_first_and_a_command_with_each_finding(
    gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(seed=10, int8=1.25)
    answer(FLOAT, size_bytes=200_000)
    verdict = gate()
    assert main(["gate"]) == 1
    lines = capsys.readouterr().out.splitlines()
    total = len(verdict["findings"])
    assert lines[0] == f"REGRESSION: 2 of {total} comparisons with {verdict['baseline']}"
    for finding in verdict["findings"]:
        shown = finding["outcome"] != "passed"
        if shown:
            place = next(i for i, line in enumerate(lines) if line.endswith(finding["detail"]))
            assert lines[place + 1].strip() == finding["command"]
    assert f"{total} comparisons: 2 regression, 0 invalid, 0 inconclusive" in "\n".join(lines)


def test_the_printed_command_shows_the_finding_again(gate: Gate) -> None:
    answer(FLOAT, size_bytes=200_000)
    finding = only(gate(), "regression")
    words = finding["command"].split()
    assert words[:4] == ["python", "-m", "pipeline", "gate"]
    assert only(gate(*words[4:]), "regression") == finding


def test_it_loads_neither_torch_nor_a_runtime(project: Path) -> None:
    script = (
        "import sys; from pipeline.cli.commands import main\n"
        "code = main(['gate'])\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'sklearn', 'dvc'}\n"
        "print(code, sorted(heavy & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin:/usr/local/bin"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=project, env=environment
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_the_more_artifacts_are_tested_the_more_one_of_them_must_show() -> None:
    settings = load_params(ROOT / "params.yaml").gate.model_copy(update={"false_alarms": 0.05})

    def flips(key: str, lost: int, won: int) -> Flips:
        by_class = np.array([[IMAGES], [lost], [won], [1800]])
        return Flips(key, IMAGES, lost, won, 0.9, 0.9 - (lost - won) / IMAGES, ("a",), by_class)

    changed = flips("a", 12, 2)  # p 0.013
    calm = [flips(f"b{i}", 5, 5) for i in range(5)]
    alone, _ = accuracy.decide([changed], 2, settings)
    among, _ = accuracy.decide([changed, *calm], 12, settings)
    assert alone[0].outcome is Outcome.REGRESSION
    assert among[0].outcome is not Outcome.REGRESSION


def test_a_class_that_collapses_is_a_regression_though_top1_holds(
    gate: Callable[..., dict[str, Any]],
) -> None:
    answer(INT8, rare=30)
    found = {f["measure"]: f for f in gate()["findings"] if f["key"] == INT8}
    assert found["top-1"]["outcome"] == Outcome.PASSED
    assert found["recall"]["outcome"] == Outcome.REGRESSION
    assert "class `b`: 30 answers lost, 0 won of 40; p " in found["recall"]["detail"]
    assert (found["recall"]["baseline"], found["recall"]["candidate"]) == (36 / 40, 6 / 40)
    answer(INT8, rare=5)  # that many are lost by chance
    assert all(f["outcome"] != Outcome.REGRESSION for f in gate()["findings"])


def verdicts(slow: float, noise: Callable[[np.random.Generator], np.ndarray]) -> list[Outcome]:
    """What 150 reruns say of an artifact of 1 ms that became so much slower, among 32 tests."""
    settings = load_params(ROOT / "params.yaml").gate
    rng = np.random.default_rng(1)
    pairs = [(slow * np.exp(noise(rng)), np.exp(noise(rng))) for _ in range(150)]
    slowdowns = [
        Slowdown("a", RERUN, paired_log_ratio(after, before), 1.0, slow, True, "")
        for after, before in pairs
    ]
    return [latency.decide(slowdown, 32, settings).outcome for slowdown in slowdowns]


def idle(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0, 0.015, ROUNDS)


def loaded(rng: np.random.Generator) -> np.ndarray:
    """One round in seven meets a neighbour who takes a good part of the machine."""
    quiet = rng.normal(0, 0.02, ROUNDS)
    return quiet + (rng.random(ROUNDS) < 1 / 7) * rng.exponential(0.5, ROUNDS)


def test_side_by_side_a_tenth_is_found_and_nothing_is_not() -> None:
    for noise, least in ((idle, 0.99), (loaded, 0.9)):
        slower, equal = verdicts(1.1, noise), verdicts(1.0, noise)
        assert slower.count(Outcome.REGRESSION) >= least * len(slower)
        assert slower.count(Outcome.PASSED) == 0
        assert equal.count(Outcome.REGRESSION) == 0
        assert equal.count(Outcome.PASSED) >= least * len(equal)


def test_a_rerun_times_both_artifacts_in_the_same_rounds(
    workspace: Params, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert workspace.gate.rerun_rounds == ROUNDS
    set_group("gate", rerun_rounds=3)
    shutil.copytree(COMPILED, "before/models/compiled")
    shutil.copytree(METRICS, "before/metrics")
    key = f"{STUDENT}/onnxruntime/fp32"
    main(["gate", "--json", "--baseline", "before", "--rerun", "--only", key])
    verdict = json.loads(capsys.readouterr().out)
    (finding,) = [f for f in verdict["findings"] if f["measure"] == RERUN]
    assert finding["outcome"] in ("passed", "inconclusive")
    assert finding["baseline"] > 0 and finding["candidate"] > 0
    assert "over 3 rounds side by side" in finding["detail"]

    stop = Watch.stop
    fixed = {"seconds": 10.0, "stolen": None, "elsewhere": None, "mhz": None}
    taken = itertools.chain([fixed | {"others": 0.0}], itertools.repeat(fixed | {"others": 0.9}))
    monkeypatch.setattr(Watch, "stop", lambda self: stop(self).model_copy(update=next(taken)))
    main(["gate", "--json", "--baseline", "before", "--rerun", "--only", key])
    verdict = json.loads(capsys.readouterr().out)
    (finding,) = [f for f in verdict["findings"] if f["measure"] == RERUN]
    assert "over 3 rounds side by side (2 of them disturbed)" in finding["detail"]

    model = Artifact(STUDENT, "onnxruntime", "fp32").folder / "model.onnx"
    model.write_bytes(model.read_bytes()[:100])
    assert main(["gate", "--json", "--baseline", "before", "--rerun", "--only", key]) == 2
    verdict = json.loads(capsys.readouterr().out)
    assert "damaged or of another run" in only(verdict, "invalid")["detail"]


def test_artifacts_that_are_not_at_hand_are_told_with_the_command(gate: Gate) -> None:
    shutil.copytree(METRICS, "before/metrics")
    finding = only(gate("--rerun", "--baseline", "before"), "invalid")
    assert finding["measure"] == RERUN and "--baseline-models" in finding["detail"]
    assert "--rerun" in finding["command"]
    finding = only(gate("--rerun"), "invalid")  # a repository without DVC
    assert "dvc get . models/compiled --rev" in finding["detail"]


def test_a_device_that_refuses_the_bundle_is_a_regression_until_it_is_another(gate: Gate) -> None:
    student, backend, precision = INT8.split("/")
    sums = Artifact(student, backend, precision).bundle / "SHA256SUMS"
    sums.parent.mkdir(parents=True)
    sums.write_text("the sums")
    identity = {"student": student, "backend": backend, "precision": precision}
    result = {
        "verdict": "FAILED", "why": "the class is the lab's on 12% of the images only",
        "machine": {"cpu": "a board"}, "bundle": {**identity, "digest": sha256(sums)},
    }  # fmt: skip
    Path("result.json").write_text(json.dumps(result))
    import_results([Path("result.json")])
    finding = only(gate(), "regression")
    assert (finding["key"], finding["measure"]) == (INT8, "device")
    assert finding["detail"].startswith("a board: FAILED: the class is the lab's on 12%")
    sums.write_text("of another build")
    verdict = gate()
    assert verdict["exit_code"] == 0
    assert any("a board" in note["text"] and "stale" in note["text"] for note in verdict["notes"])
