"""Our harness beside MLPerf LoadGen, and beside OpenVINO's benchmark_app.

The same file, the same test images, one thread: the worker of the stage `benchmark` with its
own harness, and once more with LoadGen (SingleStream) in the harness's place; p90 of both.
OpenVINO's artifacts also through `benchmark_app`: synchronous, one request, one stream, one
thread, float32 where a layer is not int8, at batch 1; p50 of both. benchmark_app times the
request inside the runtime and leaves out what Python adds to a call, which ours includes.

In rounds: every tool measures for some seconds, in turn, in an order of its own for each round.
A ratio is the other tool's figure over ours in the same round; the median of the rounds counts.
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
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.shared import count
from pipeline.backends.registry import backend
from pipeline.contracts import Artifact, artifact_folder
from pipeline.errors import PipelineError, run
from pipeline.files import write_whole
from pipeline.measure import workers
from pipeline.measure.benchmark import reference_target, write_test_images
from pipeline.measure.fingerprint import read_fingerprint
from pipeline.measure.latency import balanced_order
from pipeline.measure.workers import Target, Worker
from pipeline.params import Params, load_params

RESULTS = Path("benchmarks/results/loadgen.json")
WANTED = 0.05
MIN_RUNS = 1024
PACKAGES = ("mlcommons-loadgen", "numpy")
START_APP = "from openvino.tools.benchmark.main import main; main()"
OURS, LOADGEN, APP = "ours", "LoadGen", "benchmark_app"

Figures = dict[str, float]
"""Milliseconds by name: p50, p90 and, of LoadGen, `early_stopping` of p90."""


def targets(params: Params, asked: str | None, scratch: Path) -> list[Target]:
    """The reference and every artifact that is here and runs here, or the one `asked` for."""
    found = [reference_target(scratch)]
    for student in params.students.enabled:
        for name, precision in params.backends.pairs():
            key, folder = f"{student}/{name}/{precision}", artifact_folder(student, name, precision)
            if folder.exists() and asked in (None, key) and not backend(name).unmeasurable():
                file = folder / Artifact.read_whole(folder).model_file
                found.append(Target(key, name, file, write_test_images(scratch)))
    if asked is not None:
        found = [target for target in found if target.name == asked]
        if not found:
            raise PipelineError(f"there is no `{asked}` that runs here", where="--only")
    return found


def compare(target: Target, arguments: argparse.Namespace, params: Params) -> dict[str, Any]:
    """The figures of every tool in every round."""
    from benchmarks import loadgen_worker  # needs LoadGen, which `main` has looked for

    size = {"min_runs": MIN_RUNS, "min_seconds": arguments.seconds}
    tools: dict[str, Callable[[], Figures]] = {}
    with ExitStack() as stack:
        ours = stack.enter_context(Worker(target, threads=1))
        with patch.object(workers, "worker", loadgen_worker):  # the module it runs
            loadgen = stack.enter_context(Worker(target, threads=1))
        for worker in (ours, loadgen):
            cpus = worker.ask({})["cpus"]
            worker.ask({"min_runs": 64, "min_seconds": 0.5})  # warms caches and clocks
        tools[OURS] = lambda: _ours(ours.ask(size))
        tools[LOADGEN] = lambda: _loadgen(loadgen.ask(size))
        if target.backend == "openvino":
            images = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            pixels = np.load(target.images)
            for number, image in enumerate(pixels):
                image.tofile(images / f"{number:03}.bin")
            shape = [1, *pixels.shape[1:]]
            tools[APP] = lambda: benchmark_app(target.model, images, shape, arguments.seconds, cpus)
        rounds: dict[str, list[Figures]] = {name: [] for name in tools}
        for order in balanced_order(list(tools), arguments.rounds, params.seed):
            for name in order:
                rounds[name].append(tools[name]())
    ratios = {LOADGEN: _ratio(rounds, LOADGEN, "p90")}
    if APP in rounds:
        ratios[APP] = _ratio(rounds, APP, "p50")
    return {"key": target.name, "rounds": rounds, "ratios": ratios}


def _ours(answer: dict[str, Any]) -> Figures:
    p50, p90 = np.percentile(answer["nanoseconds"], (50, 90)) / 1e6
    return {"p50": float(p50), "p90": float(p90)}


def _loadgen(answer: dict[str, Any]) -> Figures:
    return dict(
        zip(("p50", "p90", "early_stopping"), np.array(answer["nanoseconds"]) / 1e6, strict=True)
    )


def benchmark_app(
    model: Path, images: Path, shape: list[int], seconds: float, cpus: list[int] | None
) -> Figures:
    """Its median: to 0.01 us where the mean is below a millisecond, else to 0.01 ms.

    On the CPUs that ours is pinned to, too, where the system can do that.
    """
    # -hint none, as it refuses -nthreads beside any other hint
    words = [
        "-m", str(model), "-i", str(images), "-d", "CPU", "-shape", str(shape).replace(" ", ""),
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


def _ratio(rounds: dict[str, list[Figures]], tool: str, figure: str) -> dict[str, float]:
    pairs = zip(rounds[tool], rounds[OURS], strict=True)
    ratios = np.array([theirs[figure] / ours[figure] for theirs, ours in pairs])
    return {
        "median": float(np.median(ratios)),
        "least": float(ratios.min()),
        "most": float(ratios.max()),
    }


def show(result: dict[str, Any]) -> None:
    machine = result["machine"]
    print(f"{machine['cpu']}, {machine['cores']} cores; one thread, {result['rounds']} rounds")
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()) + "\n")
    for tool, figure in ((LOADGEN, "p90"), (APP, "p50")):
        rows = [row for row in result["rows"] if tool in row["ratios"]]
        if not rows:
            continue
        print(f"{figure + ', ms':<34}{'ours':>9}{tool:>15}  ratio (least to most)")
        for row in rows:
            ours, theirs = (
                float(np.median([one[figure] for one in row["rounds"][name]]))
                for name in (OURS, tool)
            )
            ratio = "{median:.3f} ({least:.3f} to {most:.3f})".format(**row["ratios"][tool])
            print(f"{row['key']:<34}{ours:>9.4f}{theirs:>15.4f}  {ratio}")
        within = sum(abs(row["ratios"][tool]["median"] - 1) <= WANTED for row in rows)
        print(f"within {WANTED:.0%}: {within} of {len(rows)}\n")


def main() -> None:
    options = argparse.ArgumentParser(description="our latencies beside LoadGen's and OpenVINO's")
    options.add_argument("--rounds", type=count, default=6, help="even: the order is balanced")
    options.add_argument("--seconds", type=float, default=2.0, help="per tool and round, at least")
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
