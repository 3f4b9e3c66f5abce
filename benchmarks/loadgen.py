"""Our harness beside MLPerf LoadGen, and beside OpenVINO's benchmark_app.

The same file, the same test images, one thread: the worker of the stage `benchmark` with its
own harness, and once more with LoadGen (SingleStream) in the harness's place; p90 of both.
OpenVINO's artifacts also through `benchmark_app`: synchronous, one request, one stream, one
thread, float32 where a layer is not int8, at batch 1; p50 of both.

Both differ from ours by calls that take some microseconds, a good part of such short inferences:
LoadGen calls Python for each query, and benchmark_app times the request inside the runtime, where
ours includes what Python adds to a call. Both are measured in the same rounds: LoadGen's with
queries that are answered without work, Python's as what ours takes longer than benchmark_app for a
network that computes next to nothing. Ratios are printed as measured, and net of these.

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
from dataclasses import replace
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
OURS_NOTHING, APP_NOTHING = "ours, no work", "benchmark_app, no work"

Figures = dict[str, float]
"""Milliseconds by name: p50, p90 and, of LoadGen, `early_stopping` of p90 and `no_work`."""
Round = dict[str, Figures]
"""By tool."""


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
        cpus = ours.ask({})["cpus"]
        loadgen.ask({})
        tools[OURS] = lambda: _ours(ours.ask(size))
        tools[LOADGEN] = lambda: _loadgen(loadgen.ask(size))
        if target.backend == "openvino":
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            empty = replace(target, model=no_work(target, scratch))
            nothing = stack.enter_context(Worker(empty, threads=1))
            nothing.ask({})
            app = partial(benchmark_app, target.images, arguments.seconds, cpus, scratch)
            tools[APP] = lambda: app(target.model)
            tools[OURS_NOTHING] = lambda: _ours(nothing.ask(size))
            tools[APP_NOTHING] = lambda: app(empty.model)
        rounds: list[Round] = [
            {name: tools[name]() for name in order}
            for order in balanced_order(list(tools), arguments.rounds, params.seed)
        ]
    return {"key": target.name, "rounds": rounds, "ratios": ratios(rounds)}


def ratios(rounds: list[Round]) -> dict[str, dict[str, dict[str, float]]]:
    """By tool, its figure over ours as measured and net of calls; over the rounds."""
    found = {
        LOADGEN: {
            "measured": _spread([one[LOADGEN]["p90"] / one[OURS]["p90"] for one in rounds]),
            "net": _spread(
                [
                    (one[LOADGEN]["p90"] - one[LOADGEN]["no_work"]) / one[OURS]["p90"]
                    for one in rounds
                ]
            ),
        }
    }
    if APP in rounds[0]:
        found[APP] = {
            "measured": _spread([one[APP]["p50"] / one[OURS]["p50"] for one in rounds]),
            "net": _spread([one[APP]["p50"] / (one[OURS]["p50"] - _python(one)) for one in rounds]),
        }
    return found


def _python(one: Round) -> float:
    """Milliseconds that Python adds to a call of OpenVINO."""
    return one[OURS_NOTHING]["p50"] - one[APP_NOTHING]["p50"]


def no_work(target: Target, scratch: Path) -> Path:
    """An OpenVINO model with the input of `target` that computes next to nothing."""
    import openvino
    from openvino import opset13

    shape = np.load(target.images, mmap_mode="r").shape[1:]
    image = opset13.parameter([-1, *shape], np.uint8, name="image")
    corner = opset13.slice(image, [0, 0, 0], [1, 1, 1], [1, 1, 1], axes=[1, 2, 3])
    logits = opset13.convert(corner, np.float32)
    file = scratch / "nothing.xml"
    openvino.save_model(openvino.Model([logits], [image]), file)
    return file


def _ours(answer: dict[str, Any]) -> Figures:
    p50, p90 = np.percentile(answer["nanoseconds"], (50, 90)) / 1e6
    return {"p50": float(p50), "p90": float(p90)}


def _loadgen(answer: dict[str, Any]) -> Figures:
    return dict(
        zip(
            ("p50", "p90", "early_stopping", "no_work"),
            (np.array(answer["nanoseconds"]) / 1e6).tolist(),
            strict=True,
        )
    )


def benchmark_app(
    pixels: Path, seconds: float, cpus: list[int] | None, scratch: Path, model: Path
) -> Figures:
    """Its median: to 0.01 us where the mean is below a millisecond, else to 0.01 ms.

    On the CPUs that ours is pinned to, too, where the system can do that. It reads images from
    files in `scratch`.
    """
    images, folder = np.load(pixels), scratch / "images"
    if not folder.exists():
        folder.mkdir()
        for number, image in enumerate(images):
            image.tofile(folder / f"{number:03}.bin")
    shape = f"[1,{','.join(map(str, images.shape[1:]))}]"
    # -hint none, as it refuses -nthreads beside any other hint
    words = [
        "-m", str(model), "-i", str(folder), "-d", "CPU", "-shape", shape,
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
    for tool, figure in ((LOADGEN, "p90"), (APP, "p50")):
        rows = [row for row in result["rows"] if tool in row["ratios"]]
        if not rows:
            continue
        heads = f"{'ours':>9}{tool:>15}{'calls':>9}"
        print(f"{figure + ', ms':<34}{heads}  {'as measured':<25}net of calls (least to most)")
        for row in rows:
            calls = [
                one[LOADGEN]["no_work"] if tool == LOADGEN else _python(one)
                for one in row["rounds"]
            ]
            ours, theirs = (
                float(np.median([one[name][figure] for one in row["rounds"]]))
                for name in (OURS, tool)
            )
            texts = (
                "{median:.3f} ({least:.3f} to {most:.3f})".format(**row["ratios"][tool][kind])
                for kind in ("measured", "net")
            )
            figures = f"{ours:>9.4f}{theirs:>15.4f}{float(np.median(calls)):>9.4f}"
            print(f"{row['key']:<34}{figures}  {'  '.join(texts)}")
        for kind in ("measured", "net"):
            close = [abs(row["ratios"][tool][kind]["median"] - 1) <= WANTED for row in rows]
            print(f"within {WANTED:.0%}, {kind}: {sum(close)} of {len(rows)}")
        print()


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
