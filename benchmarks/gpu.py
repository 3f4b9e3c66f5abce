"""What training does on an NVIDIA GPU: the same bits, images per second, and the profile `gpu`.

Three parts, each of which is kept in the folder --work when it is done, so that the command goes on
where it was cut off:

- checks: views on the device are those of the CPU, bit for bit; two short runs of the profile's
  recipe have the same bits; a step that is replayed as a CUDA graph ends where one without does.
- rates: images per second of a student's step as the pipeline takes it, with views, recorded
  logits, optimizer and moving average, replayed as a graph and without; beside it forward and
  backward pass alone on one batch that is already there.
- recipe: teacher, students alone and distilled, and int8 everywhere: see `benchmarks.profiles`.

Without a GPU everything runs on the CPU, where steps are never captured; the result says so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from benchmarks.profiles import Sitting
from benchmarks.shared import Task, circumstances, count, one_device, open_task, parser
from pipeline.cli.params import Params
from pipeline.core.errors import run
from pipeline.core.files import write_whole
from pipeline.data.params import Augment
from pipeline.data.views import Views
from pipeline.training.auto import Facts, plan_recipe
from pipeline.training.loop import fit
from pipeline.training.objective import Run
from pipeline.training.params import Recipe
from pipeline.training.recipe import build_average, build_optimizer
from pipeline.training.step import Step, captures

RESULTS = Path("results/gpu.json")
PARTS = ("checks", "rates", "recipe")
WARM_UP = 10
"""Steps before the clock runs; a graph is captured in the fourth."""
SOME = 8192
"""Images of the checks."""
EVERYTHING = Augment(flip=True, shift=2, crop=0.5, trivial=True, erase=0.5, mixup=0.4, cutmix=1.0)


@dataclass(frozen=True)
class Recorded:
    """Logits that stand for a teacher's, in memory: [epochs, samples, classes]."""

    logits: NDArray[np.float32]

    @property
    def epochs(self) -> int:
        return len(self.logits)

    def batch(self, epoch: int, samples: NDArray[np.int64], device: torch.device) -> torch.Tensor:
        return torch.from_numpy(self.logits[epoch, samples])[None].to(device, non_blocking=True)


def recorded(task: Task) -> Recorded:
    """Random logits for two epochs of the task's images."""
    shape = (2, len(task.labels), len(task.manifest.classes))
    return Recorded(np.random.default_rng(0).normal(0, 3, shape).astype(np.float32))


def checks(task: Task, training: Recipe, fabric: Fabric) -> dict[str, Any]:
    """Views, bits and graphs: what differs is told, not raised."""
    few = replace(task, images=task.images[:SOME], labels=task.labels[:SOME])
    shown = Views(few.images, few.labels, EVERYTHING, classes=len(task.manifest.classes), seed=1)
    samples = np.random.default_rng(0).permutation(len(few.labels))[: training.batch_size]
    here, there = (shown.batch(1, samples, at) for at in (torch.device("cpu"), fabric.device))
    one, two, plain = (
        _weights(few, training.model_copy(update={"cuda_graph": graph}), fabric)
        for graph in (training.cuda_graph, training.cuda_graph, False)
    )
    return {
        "captured": captures(training.cuda_graph, fabric),
        "views as on the CPU": all(
            torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True)
        ),
        "two runs, same bits": all(torch.equal(one[name], two[name]) for name in one),
        "graph and none, same bits": all(torch.equal(one[name], plain[name]) for name in one),
        "graph and none, largest relative difference of a tensor": max(
            float((one[name] - plain[name]).norm() / (plain[name].norm() + 1e-12))
            for name in one
            if one[name].is_floating_point()
        ),
    }


def _weights(task: Task, training: Recipe, fabric: Fabric) -> dict[str, torch.Tensor]:
    """The student after two epochs."""
    objective = task.objective({})
    val = (task.images[:512], task.labels[:512])
    settings = Run("benchmark", "benchmark-gpu", 1, training, 2, 1e9, curves=False)
    fit(fabric, objective, task.views(), val, settings, recorded(task))
    return {name: tensor.cpu() for name, tensor in objective.model.state_dict().items()}


def rates(task: Task, training: Recipe, fabric: Fabric, steps: int) -> dict[str, Any]:
    """Images per second, and shares of the fastest bare step."""
    found = {}
    for graph in dict.fromkeys((captures(training.cuda_graph, fabric), False)):
        how = "graph" if graph else "no graph"
        found[f"step, {how}"] = _whole(task, training, fabric, steps, graph)
        found[f"forward and backward alone, {how}"] = _bare(task, training, fabric, steps, graph)
    best = max(value for name, value in found.items() if "alone" in name)
    whole = max(value for name, value in found.items() if "step" in name)
    return {
        "batch": training.batch_size,
        "steps": steps,
        "images per second": {name: round(value) for name, value in found.items()},
        "share of the bare step": round(whole / best, 3),
    }


def _whole(task: Task, training: Recipe, fabric: Fabric, steps: int, graph: bool) -> float:
    changed = training.model_copy(update={"cuda_graph": graph})
    objective = task.objective({}).to(fabric.device)
    optimizer = build_optimizer(objective, changed, "benchmark", capturable=graph)
    average = build_average(objective.model, changed)
    settings = Run("benchmark", "", 1, changed, 1, 1e9, curves=False)
    step = Step(fabric, objective, optimizer, task.views(), settings, recorded(task))
    objective.train()
    random = np.random.default_rng(0)

    def one(i: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = changed.lr
        step.take(i, i % 2, random.permutation(len(task.labels))[: changed.batch_size], 0.5)
        if average is not None:
            average.update(objective.model, step=i + 1)

    return _rate(one, steps, changed.batch_size, fabric)


def _bare(task: Task, training: Recipe, fabric: Fabric, steps: int, graph: bool) -> float:
    objective = fabric.setup(task.objective({}))
    objective.train()
    samples = np.arange(training.batch_size)
    pixels, labels = task.views().batch(0, samples, fabric.device)
    logits = recorded(task).batch(0, samples, fabric.device)

    def once() -> None:
        objective.zero_grad()
        terms = objective(pixels, labels, logits, 0.5)
        fabric.backward(torch.stack(list(terms.values())).sum())

    if not graph:
        return _rate(lambda _: once(), steps, training.batch_size, fabric)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        for _ in range(3):
            once()
    torch.cuda.synchronize()
    objective.zero_grad()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        once()
    return _rate(lambda _: captured.replay(), steps, training.batch_size, fabric)


def _rate(one: Callable[[int], None], steps: int, batch: int, fabric: Fabric) -> float:
    for i in range(WARM_UP):
        one(i)
    _wait(fabric)
    start = time.perf_counter()
    for i in range(WARM_UP, WARM_UP + steps):
        one(i)
    _wait(fabric)
    return steps * batch / (time.perf_counter() - start)


def _wait(fabric: Fabric) -> None:
    if fabric.device.type == "cuda":
        torch.cuda.synchronize()


def shipped(params: Params, task: Task) -> Recipe:
    """The students' recipe of `params`, with the task's batch."""
    asked = params.distill.training.model_copy(update={"batch_size": task.batch})
    about = Facts(len(task.labels), task.images.shape[1], pretrained=False)
    return plan_recipe(asked, about, "students")


def main() -> None:
    options = parser("training on a GPU: the same bits, images per second, the profile `gpu`")
    options.set_defaults(batch=512)
    options.add_argument("--steps", type=count, default=200, help="that are timed")
    options.add_argument("--seeds", type=count, default=1, help="of the recipe's students")
    options.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options.add_argument("--work", type=Path, default=Path(".work/gpu"))
    options.add_argument("--save", action="store_true", help=f"write {RESULTS}")
    arguments = options.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    task = open_task(arguments)
    sitting = Sitting("gpu", arguments.seeds, (arguments.work / "recipe").resolve())
    training = shipped(sitting.params, task)
    fabric = one_device(arguments.threads, training)
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "checks": lambda: checks(task, training, fabric),
        "rates": lambda: rates(task, training, fabric, arguments.steps),
        "recipe": sitting.go,
    }
    result = circumstances(task, fabric, ())
    if fabric.device.type == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
    for part in arguments.parts:
        file = arguments.work / f"{part}.json"
        if not file.exists():
            write_whole(file, json.dumps(made[part](), indent=2) + "\n")
        result[part] = json.loads(file.read_text())
        print(json.dumps({part: result[part]}, indent=2), flush=True)
    if arguments.save:
        write_whole(RESULTS, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    run(main)
