"""False alarms and detections of the regression gate: A/A comparisons and injected regressions.

Latency. Workers of the stage `benchmark` measure the frozen reference model and an artifact, where
one is compiled. The same file is the baseline, a candidate (A/A), and candidates whose inferences
take 5, 10 or 20% longer. `slow_worker` injects these by a busy wait; the column `measured` is the
slow-down that was observed, as caches and cores may go to other processes during a wait. Then
the gate's own functions compare and decide: those of `gate --rerun` on `gate.rerun_rounds` rounds
side by side, and those for two recorded runs of `benchmark.rounds` rounds each beside the
reference. Everything is done on the idle machine, and beside a process that keeps one core busy in
random bursts.

A session is a long interleaved measurement; disjoint blocks of its rounds are its comparisons.
Rounds of different blocks and sessions share no time, and sessions have processes of their own,
whose memory is laid out anew. Not independent are the blocks of one session, which share its
processes, and the candidates of one block, which share its baseline. Two recorded runs come from
consecutive sessions, so the comparisons of one pair of sessions share their differences, and there
are only as many pairs as sessions. The intervals nevertheless treat comparisons as independent.
Visits are shorter than in the stage `benchmark`, which makes each round noisier. Records hold the
conditions of their rounds: runs that the busy process disturbed are neither passed nor called a
regression by the gate (`disturbed` in the results).

Accuracy. Simulated answers to 10,000 images of which 1.5% or 3% flip, without a loss and with a
loss of 0.5 points, in the gate's records; and to 10 and 1,000 classes, without a loss and with one
class that loses half of its right answers. See `gate_accuracy`.

Each comparison is decided twice: as the only test of a gate run, which alarms most easily, and as
one of all tests of params.yaml, each at its share of `gate.false_alarms`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gate_accuracy import IMAGES, judge_answers, judge_classes
from benchmarks.gate_latency import IDLE, LOADED, Plan, judge, latency_trials
from benchmarks.rates import LEVEL
from benchmarks.shared import artifact_target, count
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.registry import backend
from pipeline.cli.params import Params, load_params
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import write_whole
from pipeline.gate.verdict import Outcome
from pipeline.latency.benchmark import reference_target
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.latency.workers import Target

RESULTS = Path("benchmarks/results/gate.json")
PREFERRED = ("openvino", "tflite", "onnxruntime")
"""Backends; the first one with a compiled artifact is measured."""


def models(params: Params, asked: str | None, scratch: Path) -> list[Target]:
    """The reference model, and the artifact `asked` for, or else the first int8 one."""
    chosen = [reference_target(scratch)]
    if asked is None:
        preferred = [Artifact(params.students.enabled[0], name, "int8") for name in PREFERRED]
        artifact = next((one for one in preferred if one.folder.exists()), None)
    else:
        try:
            artifact = Artifact.parse(asked)
        except ValueError:
            raise PipelineError(
                f"`{asked}` is no artifact", where="--artifact", fix="write S/B/P"
            ) from None
    if artifact is not None:
        if reason := backend(artifact.backend).unmeasurable():
            raise PipelineError(f"`{artifact}` is not measured here: {reason}", where="--artifact")
        chosen.append(artifact_target(artifact, scratch))
    return chosen


def measure(arguments: argparse.Namespace, params: Params) -> dict[str, Any]:
    visit = {
        "rounds": 10 if arguments.quick else params.gate.rerun_rounds,
        "min_runs": arguments.min_runs,
        "min_seconds": arguments.min_seconds,
    }
    sessions, blocks, answers = arguments.sessions, arguments.blocks, arguments.answers
    if arguments.quick:
        sessions, blocks, answers = 2, 2, 20
    plan = Plan(sessions, blocks, params.benchmark.model_copy(update=visit))
    artifacts = params.backends.artifacts(params.students.enabled)
    tests = (1, 3 * len(artifacts))  # top-1, recall and a latency for each
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        targets = models(params, arguments.artifact, Path(scratch))
        trials, loads = latency_trials((IDLE, LOADED), targets, plan, params)
    machine = read_fingerprint()
    versions = {"python": platform.python_version(), "numpy": importlib.metadata.version("numpy")}
    return {
        "machine": machine.model_dump(mode="json", exclude={"runtimes"}),
        "versions": versions | machine.runtimes,
        "gate": params.gate.model_dump(mode="json"),
        "plan": {"sessions": sessions, "blocks": blocks}
        | plan.visit.model_dump(mode="json")
        | {"recorded_rounds": min(params.benchmark.rounds, plan.visit.rounds)},
        "seed": params.seed,
        "load_averages": loads,
        "latency": judge(trials, tests, params.gate),
        "accuracy": judge_answers(answers, tests, params.gate, params.seed),
        "recall": judge_classes(answers, tests, params.gate, params.seed),
        "interval": LEVEL,
        "seconds": round(time.monotonic() - start),
    }


def show(result: dict[str, Any]) -> None:
    machine, plan = result["machine"], result["plan"]
    print(f"{machine['cpu']}, {machine['cores']} cores; {plan['threads']} thread(s)")
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()))
    print(
        f"{plan['sessions']} sessions of {plan['blocks']} blocks of {plan['rounds']} rounds, "
        f"{plan['min_runs']} inferences and {plan['min_seconds']:g} s a visit at least"
    )
    for state, loads in result["load_averages"].items():
        print(f"load average, {state}: {min(loads):.2f} to {max(loads):.2f}")
    for measure in dict.fromkeys(row["measure"] for row in result["latency"]):
        print(f"\n{measure}, with the limits of {result['interval']:.0%}")
        print(_heading(f"{'injected':<9}{'state':<8}{'model':<32}{'p50 ms':>7}{'measured':>9}"))
        for row in result["latency"]:
            if row["measure"] == measure:
                label = f"{_injected(row['injected']):<9}{row['state']:<8}{row['model']:<32}"
                p50, measured = (
                    "-" if row[key] is None else form.format(row[key])
                    for key, form in (("p50_ms", "{:.3f}"), ("measured", "{:+.1%}"))
                )
                print(f"{label}{p50:>7}{measured:>9}{_outcomes(row)}")
    print(f"\ntop-1 of {IMAGES:,} simulated answers")
    print(_heading(f"{'loss':<9}{'flips':<8}{'predicted':<48}"))
    for row in result["accuracy"]:
        loss = f"{row['loss']:.3f}" if row["loss"] else "A/A"
        predicted = "" if row["predicted"] is None else f"{row['predicted']:.1%}"
        print(f"{loss:<9}{row['flips']:<8.1%}{predicted:<48}{_outcomes(row)}")
    print(f"\n{result['seconds']} s; tests: how many share `false_alarms` in a gate run")


def _injected(share: float) -> str:
    return f"+{share:.0%}" if share else "A/A"


def _heading(label: str) -> str:
    counts = "".join(f"{outcome[:7]:>8}" for outcome in Outcome)
    return f"{label}{'tests':>6}{counts}  {'called a regression':<26}{'passed':<26}".rstrip()


def _outcomes(row: dict[str, Any]) -> str:
    counts = "".join(f"{row['outcomes'][outcome]:>8}" for outcome in Outcome)
    rates = (
        "{rate:.1%} ({low:.1%} to {high:.1%})".format(**row[key]) for key in ("found", "passed")
    )
    return f"{row['tests']:>6}{counts}  " + "".join(f"{text:<26}" for text in rates).rstrip()


def main() -> None:
    options = argparse.ArgumentParser(description="false alarms and detections of the gate")
    options.add_argument("--sessions", type=count, default=20, help="per state of the machine")
    options.add_argument("--blocks", type=count, default=10, help="comparisons per session")
    options.add_argument("--min-runs", type=count, default=10, help="inferences per visit")
    options.add_argument("--min-seconds", type=float, default=0.015, help="seconds per visit")
    options.add_argument("--answers", type=count, default=1000, help="trials of accuracy")
    options.add_argument("--artifact", help="S/B/P beside the reference; else the first int8 one")
    options.add_argument("--quick", action="store_true", help="a short run, to see if it works")
    options.add_argument("--save", action="store_true", help=f"write {RESULTS}")
    arguments = options.parse_args()
    if arguments.quick and arguments.save:
        options.error("results of --quick are not saved")
    result = measure(arguments, load_params())
    show(result)
    if arguments.save:
        write_whole(RESULTS, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    run(main)
