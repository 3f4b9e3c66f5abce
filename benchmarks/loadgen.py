"""Our harness beside MLPerf LoadGen and OpenVINO's benchmark_app.

All measure the same file with the same test images on one thread. A worker of the stage `benchmark`
is timed by its own harness and by LoadGen (SingleStream) in turn; p90 is compared. OpenVINO's
artifacts are also measured by `benchmark_app`: synchronous, one request, one stream, one thread,
float32 where a layer is not int8, batch 1; p50 is compared.

Calls of some microseconds, a good part of such short inferences, make the tools differ: LoadGen
calls Python for each query, and benchmark_app times the request inside the runtime, while our times
include Python's share of a call. Both differences are measured in the same rounds, around the same
inferences: LoadGen's clock minus ours, and ours minus the runtime's. Ratios are printed as measured
and net of these calls.

In every round each tool measures for some seconds, in an order drawn for the round, in processes
started for it: two processes that do the same differ by some percent for as long as they live. A
ratio is the other tool's figure divided by ours in the same round; the result is the median over
the rounds.
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

from benchmarks.shared import artifact_target, count
from pipeline.backends.base.registry import backend
from pipeline.cli.params import Params, load_params
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import write_whole
from pipeline.latency import workers
from pipeline.latency.benchmark import reference_target
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
"""Milliseconds: p50, p90, `early_stopping` (LoadGen's estimate of p90) and `calls` (see above)."""
Round = dict[str, Figures]
"""By tool."""


def targets(params: Params, asked: str | None, scratch: Path) -> list[Target]:
    """The reference and every compiled artifact that runs here, or the one `asked` for."""
    found = [reference_target(scratch)]
    for artifact in params.backends.artifacts(params.students.enabled):
        wanted = artifact.folder.exists() and asked in (None, artifact.key)
        if wanted and not backend(artifact.backend).unmeasurable():
            found.append(artifact_target(artifact, scratch))
    if asked is not None:
        found = [target for target in found if target.name == asked]
        if not found:
            raise PipelineError(f"there is no `{asked}` that runs here", where="--only")
    return found


def compare(target: Target, arguments: argparse.Namespace, params: Params) -> dict[str, Any]:
    """The figures of every tool in every round, and their ratios."""
    tools = [OURS, LOADGEN, *([APP] if target.backend == "openvino" else [])]
    with tempfile.TemporaryDirectory() as scratch:
        rounds = [
            measure(target, order, arguments.seconds, Path(scratch))
            for order in balanced_order(tools, arguments.rounds, params.seed)
        ]
    return {"key": target.name, "rounds": rounds, "ratios": ratios(rounds)}


def measure(target: Target, order: list[str], seconds: float, scratch: Path) -> Round:
    """The figures of the tools in one round, in this order, from processes started for it."""
    from benchmarks import loadgen_worker  # imports LoadGen, which may not be installed

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

    with patch.object(workers, "worker", loadgen_worker):  # the module that it runs
        process = Worker(target, threads=1)
    with process:
        cpus = process.ask({})["cpus"]
        app = partial(benchmark_app, target, seconds, cpus, scratch)
        tools: dict[str, Callable[[], Figures]] = {OURS: ours, LOADGEN: loadgen, APP: app}
        return {tool: tools[tool]() for tool in order}


def ratios(rounds: list[Round]) -> dict[str, dict[str, dict[str, float]]]:
    """By tool: its figure divided by ours, as measured and net of calls, over the rounds."""
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
    """The median of benchmark_app, which prints 0.01 us below a millisecond, else 0.01 ms.

    Where the system supports it, the tool is pinned to the CPUs of our worker. It reads images
    from files in `scratch`.
    """
    images, folder = np.load(target.images), scratch / "images"
    if not folder.exists():
        folder.mkdir()
        for number, image in enumerate(images):
            image.tofile(folder / f"{number:03}.bin")
    shape = f"[1,{','.join(map(str, images.shape[1:]))}]"
    # it refuses -nthreads together with any other hint
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
