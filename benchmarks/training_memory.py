"""Peak memory of training with N and with ten times as many images, each in its own process.

The `fit` of a stage with recorded teacher logits, validation and checkpoints: ten epochs of N
images and one epoch of ten times as many, so that the steps are equal, as the heap grows a little
with time. The images are real ones, repeated, in a memory-mapped file in a temporary folder.
Anonymous memory (RssAnon) is what training holds; the peak of all resident memory (VmHWM) includes
pages of the mapped files, which the kernel drops when memory gets short.

Training holds some 29 bytes per image: 8 for the label, 8 for the order, 9 for flip and shift and 4
more while they are drawn. Two runs of the same size differ by some MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from benchmarks.shared import Task, circumstances, count, one_device, open_task, parser
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import write_whole
from pipeline.data.records import load_split
from pipeline.distill.recording import INDEX, RecordedLogits, _open
from pipeline.training.loop import fit
from pipeline.training.objective import Run

RESULTS = Path("benchmarks/results/training_memory.json")
MIB = 1 << 20
TIMES = 10
LOOK_SECONDS = 0.001
"""A step is some ten times as long, so none of its arrays is missed."""


class Watch:
    """The highest RssAnon while the block runs, in bytes."""

    def __enter__(self) -> Watch:
        self.highest = status("RssAnon")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            self.highest = max(self.highest, status("RssAnon"))


def status(key: str) -> int:
    """The value of a line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise PipelineError(f"this kernel does not report {key}", where="/proc/self/status")


def lay_out(task: Task, packed: Path, images: int, epochs: int, folder: Path) -> None:
    """Write what a worker trains on: a train split of `images` images, val, and a recording."""
    shape = (images, *task.images.shape[1:])
    pixels = open_memmap(folder / "train_images.npy", "w+", np.uint8, shape)
    for start in range(0, images, len(task.images)):
        part = pixels[start : start + len(task.images)]
        part[:] = task.images[: len(part)]
    pixels.flush()
    labels: NDArray[np.int64] = np.resize(task.labels, images)
    np.save(folder / "train_labels.npy", labels)
    for name in ("manifest.json", "val_images.npy", "val_labels.npy"):
        (folder / name).symlink_to(packed.resolve() / name)
    record = task.logits_record(epochs).model_copy(update={"samples": images})
    record.write(folder / INDEX)
    (folder / task.teacher).mkdir()
    (logits,) = _open(folder / task.teacher, record, "w+")
    rng = np.random.default_rng(0)
    for epoch in logits:
        epoch[:] = rng.standard_normal(epoch.shape, dtype=np.float32)
    logits.flush()
    # Curves and checkpoints are written to the worker's folder; DVCLive requires this file.
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """The worker: `fit` on the images in `--packed`."""
    fabric = one_device(arguments.threads)
    folder = arguments.packed.resolve()
    task = open_task(arguments)
    teacher_logits = RecordedLogits(task.logits_record(arguments.epochs), folder)
    val = load_split("val", folder)
    objective = task.objective({})
    made = Run("benchmark", "benchmark", task.params.seed, task.training(), arguments.epochs, 60.0)
    os.chdir(folder)
    before = status("RssAnon")
    with Watch() as watch:
        fit(fabric, objective, task.views(), val, made, teacher_logits)
    return circumstances(task, fabric, ()) | {
        "images": len(task.labels),
        "epochs": arguments.epochs,
        "before": before,
        "anonymous": watch.highest,
        "resident": status("VmHWM"),
    }


def measure(arguments: argparse.Namespace, images: int, epochs: int) -> dict[str, Any]:
    """The result of `train` in a new process."""
    task = open_task(arguments)
    command = [sys.executable, "-m", "benchmarks.training_memory", "--worker"]
    command += ["--batch", str(task.batch), "--student", task.student, "--teacher", task.teacher]
    if arguments.threads is not None:
        command += ["--threads", str(arguments.threads)]
    with tempfile.TemporaryDirectory() as folder:
        lay_out(task, arguments.packed, images, epochs, Path(folder))
        command += ["--packed", folder, "--epochs", str(epochs)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise PipelineError(f"training on {images:,} images failed")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(small: dict[str, Any], large: dict[str, Any]) -> None:
    print(f"{small['machine']['cpu']}; on {small['device']}, {small['threads']} thread(s)")
    print(", ".join(f"{name} {version}" for name, version in small["versions"].items()))
    print(f"{small['student']}, images {small['image']}, batch {small['batch']}\n")
    print(f"{'images':>10}{'epochs':>8}{'before':>12}{'peak RssAnon':>16}{'VmHWM':>12}   MiB")
    for row in (small, large):
        sizes = (row[key] / MIB for key in ("before", "anonymous", "resident"))
        print(
            "{:>10,}{:>8}{:>12.1f}{:>16.1f}{:>12.1f}".format(row["images"], row["epochs"], *sizes)
        )
    more = large["images"] - small["images"]
    print(
        f"\n{TIMES} times the images take {large['anonymous'] / small['anonymous']:.3f} times the "
        f"anonymous memory and {large['resident'] / small['resident']:.3f} times VmHWM.\n"
        f"Each further image costs {(large['anonymous'] - small['anonymous']) / more:.1f} bytes of "
        f"anonymous memory; it has {np.prod(small['image'])} bytes of pixels."
    )


def main() -> None:
    options = parser("peak memory of training with N and with ten times as many images")
    options.add_argument("--images", type=count, default=10_000, help="N")
    options.add_argument("--save", action="store_true", help=f"write {RESULTS}")
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--epochs", type=count, default=1, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.worker:
        print(json.dumps(train(arguments)))
        return
    small = measure(arguments, arguments.images, epochs=TIMES)
    large = measure(arguments, TIMES * arguments.images, epochs=1)
    show(small, large)
    if arguments.save:
        write_whole(RESULTS, json.dumps([small, large], indent=2) + "\n")


if __name__ == "__main__":
    run(main)
