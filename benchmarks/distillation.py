"""Training speed of a student here and with timm and torchdistill, in one interleaved run.

All rows train the same student from the same weights in float32, on the same images, with the
same batch size: once with plain SGD with momentum, and once with the Muon that ships, where the
other rows have timm's as its own train.py builds it. The rows with a teacher minimise the same
loss, which is checked before anything is timed.

Our rows are the loop of a stage: views are drawn, read from the memory-mapped file, flipped and
shifted, the teacher's logits are read from their memory-mapped recording, and schedule, progress
bar, seeding and torch's deterministic algorithms are included. Validation and the checkpoint, once
per epoch, are left out. The other rows are favoured: their float batches are in memory,
normalised and channels-last, without augmentation, loader, schedule or logging. In practice their
loaders make every image in worker processes, which on a CPU take time from training. Recording
costs the teacher's time once, beforehand; one ratio includes that time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from benchmarks.others import Row, bare, in_memory, timm_task, torchdistill_box
from benchmarks.shared import SGD, Task, circumstances, count, one_device, open_task, parser
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import write_whole
from pipeline.distill.recording import INDEX, RecordedLogits, _record
from pipeline.latency.harness import balanced_order
from pipeline.training.loop import _Loop
from pipeline.training.objective import Run

RESULTS = Path("benchmarks/results/distillation.json")
INSTALL = "python -m pip install --editable '.[benchmark]'"

OPTIMIZERS = (SGD, "muon")
BARE, RECORDED, ONLINE = "bare student", "ours, recorded", "ours, online"
TIMM, TORCHDISTILL = "timm", "torchdistill"
WHAT = {
    BARE: "cross entropy in a plain torch loop, no teacher",
    RECORDED: "the loop of a stage, the teacher's logits recorded",
    ONLINE: "the loop of a stage, the teacher in every step",
    TIMM: "LogitDistillationTask, the teacher in every step",
    TORCHDISTILL: "DistillationBox and KDLoss, the teacher in every step",
}
RATIOS = (
    (RECORDED, BARE),
    (RECORDED, TIMM),
    (RECORDED, TORCHDISTILL),
    (ONLINE, TIMM),
    (ONLINE, TORCHDISTILL),
)
LEAST = {f"{RECORDED} / {BARE}": 0.90}

Rates = dict[str, NDArray[np.float64]]
"""Images per second by row, a value per round."""


def ours(task: Task, fabric: Fabric, rounds: int, teacher_logits: RecordedLogits | None) -> Row:
    """The loop of a stage; a round is an epoch without validation and checkpoint."""
    teacher = task.teacher_model().to(fabric.device)
    objective = task.objective({} if teacher_logits else {task.teacher: teacher}).to(fabric.device)
    made = Run("benchmark", "benchmark", task.params.seed, task.training(), rounds, float("inf"))
    val = (task.images[:0], task.labels[:0])
    loop = _Loop(fabric, objective, task.views(), val, made, teacher_logits)

    def loss() -> torch.Tensor:
        pixels = torch.tensor(task.images[: task.batch], device=fabric.device)
        labels = torch.tensor(task.labels[: task.batch], device=fabric.device)
        terms = objective(pixels, labels, teacher(pixels)[None] if teacher_logits else None, 0.0)
        return torch.stack(list(terms.values())).sum()

    return Row(loop._train_epoch, loss, deterministic=True)


def record(task: Task, fabric: Fabric, epochs: int, folder: Path) -> tuple[RecordedLogits, float]:
    """The teacher's logits as `record_teacher` writes them, and images recorded per second."""
    expected = task.logits_record(epochs)
    expected.write(folder / INDEX)
    teacher = task.teacher_model().to(fabric.device)
    start = time.perf_counter()
    _record(fabric, teacher, task.views(), expected, folder / task.teacher)
    seconds = time.perf_counter() - start
    return RecordedLogits(expected, folder), epochs * len(task.labels) / seconds


def check_same_loss(rows: dict[str, Row]) -> None:
    """`PipelineError` unless all rows with a teacher have the same loss."""
    with torch.no_grad():
        found = {name: row.loss().item() for name, row in rows.items() if name != BARE}
    if max(found.values()) > min(found.values()) * (1 + 1e-4):
        raise PipelineError(f"the rows do not minimise the same loss: {found}")


def measure(rows: dict[str, Row], task: Task, rounds: int, device: torch.device) -> Rates:
    """Interleaved rounds in a balanced order, after one that fills caches and memory pools."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for i, order in enumerate([list(rows), *balanced_order(list(rows), rounds, task.params.seed)]):
        for name in order:
            torch.use_deterministic_algorithms(rows[name].deterministic)
            start = time.perf_counter()
            rows[name].train(i)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
        print(f"round {i} of {rounds}", file=sys.stderr)
    return {name: len(task.labels) / np.array(found[1:]) for name, found in seconds.items()}


def ratios(rates: Rates, recording: float) -> dict[str, NDArray[np.float64]]:
    """By `A / B`: ratios of speeds in the same round."""
    found = {f"{a} / {b}": rates[a] / rates[b] for a, b in RATIOS if b in rates}
    # A single student bears the whole cost of the recording; later ones reuse it.
    alone = 1 / (1 / rates[RECORDED] + 1 / recording)
    return found | {f"{RECORDED}, for one student alone / {TIMM}": alone / rates[TIMM]}


def show(result: dict[str, Any]) -> None:
    machine = result["machine"]
    parts = [machine["cpu"], f"{machine['cores']} cores", *machine["accelerators"]]
    print(
        f"{', '.join(parts)}; on {result['device']}, {result['threads']} thread(s)\n"
        f"{', '.join(f'{name} {version}' for name, version in result['versions'].items())}\n"
        f"{result['student']} from {result['teacher']}, {result['optimizer']}, images "
        f"{result['image']}, batch {result['batch']}, {result['steps']} steps, "
        f"{result['rounds']} rounds; median (least to most) over rounds\n"
    )
    print(f"{'images/s of training':<46}{'median':>8}")
    for name, what in WHAT.items():
        row = result["images_per_second"].get(name)
        text = "not measured" if row is None else _text(row, ",.0f")
        print(f"{name:<46}{text}  {what}")
    print(f"{'recording, once for all students':<46}{result['recording']:>8,.0f}\n")
    for name, row in result["ratios"].items():
        least = f"  at least {LEAST[name]:.2f} is wanted" if name in LEAST else ""
        print(f"{name:<46}{_text(row, '.3f')}{least}")


def _text(row: dict[str, float], form: str) -> str:
    return f"{row['median']:>8{form}} ({row['least']:{form}} to {row['most']:{form}})"


def _summary(values: NDArray[np.float64]) -> dict[str, Any]:
    most, least, median = values.max(), values.min(), np.median(values)
    return {"median": float(median), "least": float(least), "most": float(most),
            "rounds": [round(float(value), 4) for value in values]}  # fmt: skip


def main() -> None:
    arguments = _arguments()
    fabric = one_device(arguments.threads)
    asked = open_task(arguments, arguments.steps * arguments.batch)
    results = {}
    for optimizer in OPTIMIZERS:
        print(f"\n{optimizer}", file=sys.stderr)
        results[optimizer] = compare(replace(asked, optimizer=optimizer), fabric, arguments)
        show(results[optimizer])
    if arguments.save:
        write_whole(RESULTS, json.dumps(results, indent=2) + "\n")


def compare(task: Task, fabric: Fabric, arguments: argparse.Namespace) -> dict[str, Any]:
    """All rows with one optimizer."""
    batches = in_memory(task, fabric.device)
    epochs = arguments.rounds + 1
    others = {BARE: bare, TIMM: timm_task, TORCHDISTILL: torchdistill_box}
    missing = importlib.util.find_spec("torchdistill") is None
    if missing:
        del others[TORCHDISTILL]
        print(f"torchdistill is not installed and not measured; {INSTALL}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        teacher_logits, recording = record(task, fabric, epochs, Path(folder))
        rows = {name: make(task, batches) for name, make in others.items()}
        rows[RECORDED] = ours(task, fabric, epochs, teacher_logits)
        rows[ONLINE] = ours(task, fabric, epochs, None)
        check_same_loss(rows)
        rates = measure(rows, task, arguments.rounds, fabric.device)
    return circumstances(task, fabric, () if missing else ("torchdistill",)) | {
        "optimizer": task.optimizer,
        "steps": arguments.steps,
        "rounds": arguments.rounds,
        "images_per_second": {name: _summary(values) for name, values in rates.items()},
        "recording": recording,
        "ratios": {name: _summary(values) for name, values in ratios(rates, recording).items()},
    }


def _arguments() -> argparse.Namespace:
    options = parser("the training step of this project beside timm's and torchdistill's")
    options.add_argument("--steps", type=count, default=40, help="per row and round")
    options.add_argument(
        "--rounds", type=count, default=10, help="even: the order is balanced then"
    )
    options.add_argument("--save", action="store_true", help=f"write {RESULTS}")
    return options.parse_args()


if __name__ == "__main__":
    run(main)
