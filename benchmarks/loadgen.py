"""Our harness beside MLPerf LoadGen, and beside OpenVINO's benchmark_app.

The same file, the same test images, one thread: a worker of the stage `benchmark` that times by
its own harness and by LoadGen (SingleStream) in the harness's place, in turn; p90 of both.
OpenVINO's artifacts also through `benchmark_app`: synchronous, one request, one stream, one
thread, float32 where a layer is not int8, at batch 1; p50 of both.

Both differ from ours by calls that take some microseconds, a good part of such short inferences:
LoadGen calls Python for each query, and benchmark_app times the request inside the runtime, where
ours includes what Python adds to a call. Both are measured in the same rounds: what LoadGen's
clock tells more than ours, and ours more than the runtime's, around the very same inferences.
Ratios are printed as measured, and net of these.

In rounds: every tool measures for some seconds, in turn, in an order of its own for each round, in
processes that were started for it, as two that do the same differ by some percent for as long as
they live. A ratio is the other tool's figure over ours in the same round; the median of the rounds
counts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.shared import count
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.base.registry import backend
from pipeline.cli.params import Params, load_params
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import write_whole
from pipeline.latency import workers
from pipeline.latency.benchmark import reference_target, write_test_images
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.latency.harness import balanced_order
from pipeline.latency.workers import Target, Worker

RESULTS = Path("benchmarks/results/loadgen.json")
WANTED = 0.05
MIN_RUNS = 1024
PACKAGES = ("mlcommons-loadgen", "numpy")
START_APP = "from openvino.tools.benchmark.main import main; main()"
OURS, LOADGEN, APP = "ours", "LoadGen", "benchmark_app"

Figures = dict[str, float]
"""Milliseconds by name: p50 and p90; `early_stopping` of p90 is LoadGen's; `calls`, see above."""
Round = dict[str, Figures]
"""By tool."""


def targets(params: Params, asked: str | None, scratch: Path) -> list[Target]:
    """The reference and every artifact that is here and runs here, or the one `asked` for."""
    found = [reference_target(scratch)]
    for student in params.students.enabled:
        for name, precision in params.backends.pairs():
            key, folder = f"{student}/{name}/{precision}", Artifact(student, name, precision).folder
            if folder.exists() and asked in (None, key) and not backend(name).unmeasurable():
                file = folder / ArtifactRecord.read_whole(folder).model_file
                found.append(Target(key, name, file, write_test_images(scratch)))
    if asked is not None:
        found = [target for target in found if target.name == asked]
        if not found:
            raise PipelineError(f"there is no `{asked}` that runs here", where="--only")
    return found


def compare(target: Target, arguments: argparse.Namespace, params: Params) -> dict[str, Any]:
    """The figures of every tool in every round."""
    tools = [OURS, LOADGEN, *([APP] if target.backend == "openvino" else [])]
    with tempfile.TemporaryDirectory() as scratch:
        rounds = [
            measure(target, order, arguments.seconds, Path(scratch))
            for order in balanced_order(tools, arguments.rounds, params.seed)
        ]
    return {"key": target.name, "rounds": rounds, "ratios": ratios(rounds)}


def measure(target: Target, order: list[str], seconds: float, scratch: Path) -> Round:
    """The figures of the tools in one round, in this order, by processes started for it."""
    from benchmarks import loadgen_worker  # needs LoadGen, which `main` has looked for

    def ask(clock: str | None) -> list[float]:
        asked = {"min_runs": MIN_RUNS, "min_seconds": seconds, "clock": clock}
        milliseconds: list[float] = (np.array(process.ask(asked)["nanoseconds"]) / 1e6).tolist()
        return milliseconds

    def ours() -> Figures:
        p50, p90 = np.percentile(ask(None), (50, 90)).tolist()
        return {"p50": p50, "p90": p90} | ({"calls": ask("runtime")[0]} if APP in order else {})

    def loadgen() -> Figures:
        names = ("p50", "p90", "early_stopping", "calls")
        return dict(zip(names, ask(LOADGEN), strict=True))

    with patch.object(workers, "worker", loadgen_worker):  # the module it runs
        process = Worker(target, threads=1)
    with process:
        cpus = process.ask({})["cpus"]
        app = partial(benchmark_app, target, seconds, cpus, scratch)
        tools: dict[str, Callable[[], Figures]] = {OURS: ours, LOADGEN: loadgen, APP: app}
        return {tool: tools[tool]() for tool in order}


def ratios(rounds: list[Round]) -> dict[str, dict[str, dict[str, float]]]:
    """By tool, its figure over ours as measured and net of calls; over the rounds."""
    found = {
        LOADGEN: {
            "measured": _spread([one[LOADGEN]["p90"] / one[OURS]["p90"] for one in rounds]),
            "net": _spread(
                [(one[LOADGEN]["p90"] - one[LOADGEN]["calls"]) / one[OURS]["p90"] for one in rounds]
            ),
        }
    }
    if APP in rounds[0]:
        found[APP] = {
            "measured": _spread([one[APP]["p50"] / one[OURS]["p50"] for one in rounds]),
            "net": _spread(
                [one[APP]["p50"] / (one[OURS]["p50"] - one[OURS]["calls"]) for one in rounds]
            ),
        }
    return found


def benchmark_app(target: Target, seconds: float, cpus: list[int] | None, scratch: Path) -> Figures:
    """Its median: to 0.01 us where the mean is below a millisecond, else to 0.01 ms.

    On the CPUs that ours is pinned to, too, where the system can do that. It reads images from
    files in `scratch`.
    """
    images, folder = np.load(target.images), scratch / "images"
    if not folder.exists():
        folder.mkdir()
        for number, image in enumerate(images):
            image.tofile(folder / f"{number:03}.bin")
    shape = f"[1,{','.join(map(str, images.shape[1:]))}]"
    # -hint none, as it refuses -nthreads beside any other hint
    words = [
        "-m", str(target.model), "-i", str(folder), "-d", "CPU", "-shape", shape,
        "-hint", "none", "-api", "sync", "-nireq", "1", "-nstreams", "1", "-nthreads", "1",
        "-infer_precision", "f32", "-ip", "u8", "-t", str(max(1, round(seconds))),
        "-inference_only", "false",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", START_APP, *words],
        capture_output=True,
        text=True,
        preexec_fn=partial(os.sched_setaffinity, 0, cpus) if cpus else None,
    )
    found = re.search(r"Median:\s+([\d.]+) (us|ms)", done.stdout)
    if done.returncode or found is None:
        raise RuntimeError(f"benchmark_app failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return {"p50": float(found[1]) / {"us": 1000, "ms": 1}[found[2]]}


def _spread(ratios: list[float]) -> dict[str, float]:
    return {
        "median": float(np.median(ratios)),
        "least": float(min(ratios)),
        "most": float(max(ratios)),
    }


def show(result: dict[str, Any]) -> None:
    machine = result["machine"]
    print(f"{machine['cpu']}, {machine['cores']} cores; one thread, {result['rounds']} rounds")
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()) + "\n")
    for tool, figure, caller in ((LOADGEN, "p90", LOADGEN), (APP, "p50", OURS)):
        rows = [row for row in result["rows"] if tool in row["ratios"]]
        if not rows:
            continue
        heads = f"{'ours':>9}{tool:>15}{'calls':>9}"
        print(f"{figure + ', ms':<34}{heads}  {'as measured':<25}net of calls (least to most)")
        for row in rows:
            calls = float(np.median([one[caller]["calls"] for one in row["rounds"]]))
            ours, theirs = (
                float(np.median([one[name][figure] for one in row["rounds"]]))
                for name in (OURS, tool)
            )
            texts = (
                "{median:.3f} ({least:.3f} to {most:.3f})".format(**row["ratios"][tool][kind])
                for kind in ("measured", "net")
            )
            figures = f"{ours:>9.4f}{theirs:>15.4f}{calls:>9.4f}"
            print(f"{row['key']:<34}{figures}  {'  '.join(texts)}")
        for kind in ("measured", "net"):
            close = [abs(row["ratios"][tool][kind]["median"] - 1) <= WANTED for row in rows]
            print(f"within {WANTED:.0%}, {kind}: {sum(close)} of {len(rows)}")
        print()


def main() -> None:
    options = argparse.ArgumentParser(description="our latencies beside LoadGen's and OpenVINO's")
    options.add_argument("--rounds", type=count, default=8, help="even: the order is balanced")
    options.add_argument("--seconds", type=float, default=0.7, help="per tool and round, at least")
    options.add_argument("--only", help="S/B/P or reference; everything that is here by default")
    options.add_argument("--save", action="store_true", help=f"write {RESULTS}")
    arguments = options.parse_args()
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise PipelineError(
            "mlcommons-loadgen is not installed",
            fix="run `python -m pip install --editable '.[benchmark]'`",
        )
    params = load_params()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for target in targets(params, arguments.only, Path(scratch)):
            print(target.name, file=sys.stderr)
            rows.append(compare(target, arguments, params))
    machine = read_fingerprint()
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    result = {
        "machine": machine.model_dump(mode="json", exclude={"runtimes"}),
        "versions": {"python": platform.python_version()} | versions | machine.runtimes,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "min_runs": MIN_RUNS,
        "rows": rows,
    }
    show(result)
    if arguments.save:
        write_whole(RESULTS, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    run(main)
