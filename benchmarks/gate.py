"""Does the gate alarm when it should, and only then? A/A and injected regressions.

Latency. Workers of the stage `benchmark` measure the frozen reference model and, where there
is one, an artifact: the same file as baseline and as candidate (A/A), and as candidates whose
every inference takes 5, 10 or 20% longer (`slow_worker`: a busy wait, nothing is scaled
afterwards; the column `measured` says what came of it, as a wait lets neighbours take caches
and cores). The gate's own functions then compare and decide, `gate --rerun`'s on
`gate.rerun_rounds` rounds side by side, and those for two recorded runs, each of
`benchmark.rounds` rounds beside the reference. First on the machine as it is, then beside a
process that burns one core in random bursts.

A recording (session) lasts for several comparisons, which are disjoint blocks of its rounds.
What is independent: rounds of different blocks and sessions have no time in common; sessions
have processes of their own, thus memory laid out anew. What is not: all blocks of a session
share its processes; the candidates of a block share its baseline; two recorded runs come from
neighbouring sessions, so the comparisons of one pair of sessions share what differs between
the two, and there are no more such pairs than sessions. The intervals take every comparison
for independent. Visits are shorter than the product's, which makes each round noisier. Records
hold the conditions of their rounds, as the product's do: of runs that the neighbour disturbed
the gate says so, and neither passes them nor calls them a regression (`disturbed` in the results).

Accuracy. Invented answers to 10,000 images, 1.5% or 3% of them flipped, without a loss and
with one of 0.5 points, through the gate's records; see `gate_accuracy`.

All is decided twice: as the only test of a gate run, which alarms most easily, and as one of
as many as params.yaml has, each at its share of `gate.false_alarms`.
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

from benchmarks.gate_accuracy import IMAGES, judge_answers
from benchmarks.gate_latency import IDLE, LOADED, Plan, judge, latency_trials
from benchmarks.rates import LEVEL
from benchmarks.shared import count
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.base.registry import backend
from pipeline.cli.params import Params, load_params
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import write_whole
from pipeline.gate.verdict import Outcome
from pipeline.latency.benchmark import reference_target, write_test_images
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.latency.workers import Target

RESULTS = Path("benchmarks/results/gate.json")
PREFERRED = ("openvino", "tflite", "onnxruntime")
"""Runtimes, of which the first that has an artifact is measured."""


def models(params: Params, asked: str | None, scratch: Path) -> list[Target]:
    """The reference model, and the artifact that was `asked` for or the first int8 one."""
    chosen = [reference_target(scratch)]
    key = asked or next(
        (
            f"{params.students.enabled[0]}/{name}/int8"
            for name in PREFERRED
            if Artifact(params.students.enabled[0], name, "int8").folder.exists()
        ),
        None,
    )
    if key is not None:
        if key.count("/") != 2:
            raise PipelineError(f"`{key}` is no artifact", where="--artifact", fix="name S/B/P")
        student, name, precision = key.split("/")
        if reason := backend(name).unmeasurable():
            raise PipelineError(f"`{key}` is not measured here: {reason}", where="--artifact")
        folder = Artifact(student, name, precision).folder
        file = folder / ArtifactRecord.read_whole(folder).model_file
        chosen.append(Target(key, name, file, write_test_images(scratch)))
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
    artifacts = len(params.students.enabled) * len(list(params.backends.pairs()))
    tests = (1, 2 * artifacts)  # an accuracy and a latency for each
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
    print(f"\ntop-1 of {IMAGES:,} invented answers")
    print(_heading(f"{'loss':<9}{'flips':<8}{'predicted':<48}"))
    for row in result["accuracy"]:
        loss = f"{row['loss']:.3f}" if row["loss"] else "A/A"
        predicted = "" if row["predicted"] is None else f"{row['predicted']:.1%}"
        print(f"{loss:<9}{row['flips']:<8.1%}{predicted:<48}{_outcomes(row)}")
    print(f"\n{result['seconds']} s; tests: so many share `false_alarms` in a gate run")


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
    options.add_argument("--artifact", help="S/B/P beside the reference; the first int8 one")
    options.add_argument("--quick", action="store_true", help="a few seconds, to see it work")
    options.add_argument("--save", action="store_true", help=f"write {RESULTS}")
    arguments = options.parse_args()
    if arguments.quick and arguments.save:
        options.error("what --quick measures is not worth saving")
    result = measure(arguments, load_params())
    show(result)
    if arguments.save:
        write_whole(RESULTS, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    run(main)
