"""What photos cost: decoding, the stage `prepare`, and training at 224 pixels.

JPEGs of quality 90 are made of the photos in `--photos`, each a crop of its own, with longer sides
of 500 and of 1,600 pixels. All times are CPU times, so that other work on the machine matters
little, and what is compared alternates in one run.

- decoding: `load_image` in one process; Pillow alone opens the file, decodes all of it, and resizes
  the centre square to 258 pixels (bilinear), the stored size of 224.
- prepare: the whole stage, with all of its processes, on N and on four times as many photos of 500
  pixels. The difference of the two is what further images cost; start-up drops out. Memory is the
  highest sum over all processes of their own pages and their share of common ones (PSS).
- training: EfficientNet-Lite0 by `fit`, on what `prepare` packed. A step of the loop, with random
  crops of stored images read from the disk, beside a step of plain torch on one batch in memory.
  Peak anonymous memory (RssAnon) of `fit` with a fitted classifier, validation and checkpoints for
  N and four times as many images at about equal steps, and of the plain steps, each in its own
  process.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from benchmarks.pillow_alone import by_pillow
from benchmarks.shared import count, one_device
from benchmarks.training_memory import MIB, Watch
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import write_whole
from pipeline.data.images import load_image
from pipeline.data.params import Augment
from pipeline.data.params import Views as Asked
from pipeline.data.records import MANIFEST, PACKED, Manifest, load_split
from pipeline.data.unlabelled import load_shown
from pipeline.data.views import Views
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.networks.build import build_network, tool_versions
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.training.loop import _Loop, fit
from pipeline.training.objective import Run
from pipeline.training.params import Recipe
from pipeline.training.teacher import Supervised

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "scale.json"
SIZE, STORED, BATCH, TIMES, ROUNDS = 224, 258, 32, 4, 5
SIDES = (500, 1600)
CLASSES = ("ants", "bees")
ARCH = "efficientnet_lite0"
LOOK_SECONDS = 0.02
PARTS = ("decoding", "prepare", "training")


def make(photos: list[Path], folder: Path, images: int, side: int) -> None:
    """`images` JPEGs with a longer side of `side`, of two classes, no two the same."""
    rng = np.random.default_rng(side)
    for i in range(images):
        with Image.open(photos[i % len(photos)]) as opened:
            photo = opened.convert("RGB")
        left, top, right, bottom = rng.uniform(0, 0.1, 4)
        width, height = photo.size
        box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
        scale = side / max(box[2] - box[0], box[3] - box[1])
        size = round((box[2] - box[0]) * scale), round((box[3] - box[1]) * scale)
        name = folder / CLASSES[i % 2] / f"{i:06}.jpg"
        name.parent.mkdir(parents=True, exist_ok=True)
        photo.resize(size, Image.Resampling.BICUBIC, box=box).save(name, quality=90)


def cpu_seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def decoding(folder: Path) -> dict[str, float]:
    """CPU milliseconds per image of each way, medians over rounds."""
    files = sorted(folder.rglob("*.jpg"))
    ways: dict[str, Callable[[Path], Any]] = {
        "pillow": lambda file: by_pillow(file, STORED),
        "ours": lambda file: load_image(file, SIZE, 3, STORED),
        "ours, decoding alone": drafted,
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            taken[name].append(cpu_seconds(lambda way=way: [way(file) for file in files]))
    return {name: 1e3 * statistics.median(found) / len(files) for name, found in taken.items()}


def drafted(file: Path) -> None:
    """The part of `load_image` that no other resizing could save: decoding at the reduced size."""
    with Image.open(io.BytesIO(file.read_bytes())) as image:
        image.draft(None, (2 * STORED, 2 * STORED))
        image.load()


def project(folder: Path, photos: Path) -> None:
    """A folder in which the stages run on `photos`."""
    folder.mkdir(exist_ok=True)
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["data"] |= {
        "source": "folder", "folder": str(photos), "image_size": SIZE, "channels": 3,
        "stored_size": STORED, "val_fraction": 0.1, "test_fraction": 0.1,
        "calibration_images": 32,
    }  # fmt: skip
    (folder / "jpegs").symlink_to(photos)
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))


def started(folder: Path, *command: object, watched: bool = True) -> tuple[str, float, int]:
    """Run a module in `folder`.

    Returns:
        What it printed, the CPU seconds and the highest PSS of all its processes, in bytes; 0 where
        they are not watched, which slows a process of several GB down.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, command)],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    peak, done = 0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(LOOK_SECONDS):
            try:
                its = psutil.Process(process.pid)
                tree = [its, *its.children()]
                peak = max(peak, sum(one.memory_full_info().pss for one in tree))
            except psutil.NoSuchProcess:
                continue  # one has just ended; the next look counts the others

    watching = threading.Thread(target=look)
    if watched:
        watching.start()
    said, _ = process.communicate()
    done.set()
    if watched:
        watching.join()
    if process.returncode:
        raise PipelineError(f"`{command[0]}` failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return said, seconds, peak


def worker(folder: Path, kind: str, *options: object) -> dict[str, Any]:
    """What a worker of this benchmark found."""
    said, _, _ = started(folder, "benchmarks.scale", "--worker", kind, *options, watched=False)
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def model(manifest: Manifest) -> PixelsToLogits:
    torch.manual_seed(0)
    network = Network(arch=ARCH)
    built = build_network(network, classes=len(manifest.classes), channels=3, image_size=SIZE)
    made = PixelsToLogits(built, student_normalisation(3))
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def recipe(freeze: str) -> Recipe:
    return Recipe.model_validate(
        {"batch_size": BATCH, "optimizer": "momentum", "lr": 0.001, "weight_decay": 0.0}
        | {"freeze": freeze}
    )


def photo_views(manifest: Manifest) -> Views:
    shown, augment = load_shown(manifest, Asked()), Augment(flip=True, shift=0, crop=0.5)
    return Views(
        shown.images, shown.labels, augment,
        classes=len(manifest.classes), seed=1, size=SIZE, known=shown.known,
    )  # fmt: skip


def plain(network: PixelsToLogits) -> Callable[[], None]:
    """A step of plain torch on the first batch of train."""
    images, known = load_split("train")
    pixels, labels = torch.tensor(images[:BATCH]), torch.from_numpy(known[:BATCH])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    network.train()

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(pixels), labels).backward()
        optimizer.step()

    return step


def rate(arguments: argparse.Namespace) -> dict[str, Any]:
    """The worker that times steps: CPU seconds of each."""
    fabric = one_device(arguments.threads)
    manifest = Manifest.read(PACKED / MANIFEST)
    made = Run("scale", "scale", 1, recipe("none"), 1, float("inf"), curves=False)
    val = tuple(array[:0] for array in load_split("val"))
    loop = _Loop(fabric, Supervised(model(manifest), 0.0), photo_views(manifest), val, made, None)
    loop._set_mode()
    samples = np.random.default_rng(0).permutation(len(loop.views))[:BATCH]
    ways = {
        "plain torch": plain(model(manifest)),
        "ours": lambda: loop._train_step(0, samples),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):  # the first round allocates memory and compiles kernels
        for name, step in ways.items():
            torch.use_deterministic_algorithms(name == "ours")
            taken[name].append(cpu_seconds(step))
    return {name: found[1:] for name, found in taken.items()}


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """The worker that trains for `--steps`, by `fit` or, with --plain, by steps of plain torch."""
    if arguments.plain:
        torch.set_num_threads(arguments.threads or torch.get_num_threads())
        step = plain(model(Manifest.read(PACKED / MANIFEST)))
        with Watch() as watch:
            for _ in range(arguments.steps):
                step()
        return {"anonymous": watch.highest}
    fabric = one_device(arguments.threads)
    manifest = Manifest.read(PACKED / MANIFEST)
    views = photo_views(manifest)
    epochs = max(1, round(arguments.steps / (len(views) // BATCH)))
    made = Run("scale", "scale", 1, recipe("head_first"), epochs, 60.0, curves=False)
    with Watch() as watch:
        fit(fabric, Supervised(model(manifest), 0.0), views, load_split("val"), made)
    return {"anonymous": watch.highest, "images": len(views), "epochs": epochs}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parts that are asked for, each with its circumstances, in a temporary folder."""
    photos = sorted(arguments.photos.rglob("*.jpg"))
    if not photos:
        raise PipelineError("there are no JPEGs", where=str(arguments.photos))
    few, many = arguments.images, TIMES * arguments.images
    about = {
        "machine": read_fingerprint().model_dump(mode="json", exclude={"runtimes"}),
        "versions": tool_versions(),
        "images": [few, many],
        "threads": arguments.threads,
    }
    result: dict[str, Any] = {}
    for part in arguments.parts:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            if part == "decoding":
                for side in SIDES:
                    make(photos, folder / str(side), 50, side)
                found: dict[str, Any] = {str(side): decoding(folder / str(side)) for side in SIDES}
            else:
                for images in (few, many):
                    make(photos, folder / f"jpegs-{images}", images, 500)
                found = (preparing if part == "prepare" else training)(folder, arguments)
        result[part] = about | found
    return result


def training(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of steps, and peaks of memory."""
    few, many = arguments.images, TIMES * arguments.images
    for images in (few, many):
        here = folder / str(images)
        project(here, folder / f"jpegs-{images}")
        for stage in ("fetch", "prepare"):
            started(here, f"stages.{stage}")
    threads = ("--threads", arguments.threads) if arguments.threads else ()
    steps = ("--steps", int(0.8 * many) // BATCH)
    return {
        "step": worker(folder / str(many), "rate", *threads),
        "memory": {
            "plain torch": worker(folder / str(many), "memory", "--plain", *steps, *threads),
            **{
                f"ours, {images}": worker(folder / str(images), "memory", *steps, *threads)
                for images in (few, many)
            },
        },
    }


def preparing(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """CPU milliseconds per further image, and peaks of memory, for N and more images."""
    few, many = arguments.images, TIMES * arguments.images
    ways: dict[str, tuple[object, ...]] = {
        "prepare": ("stages.prepare",),
        "pillow": ("benchmarks.pillow_alone", "jpegs", STORED),
    }
    seconds: dict[str, dict[int, list[float]]] = {way: {few: [], many: []} for way in ways}
    peaks: dict[str, dict[int, list[int]]] = {way: {few: [], many: []} for way in ways}
    for images in (few, many):
        for way in ways:
            here = folder / f"{way}-{images}"
            project(here, folder / f"jpegs-{images}")
            started(here, "stages.fetch")
    for _ in range(ROUNDS):
        for way, command in ways.items():
            for images in (few, many):
                _, taken, peak = started(folder / f"{way}-{images}", *command)
                seconds[way][images].append(taken)
                peaks[way][images].append(peak)
    return {
        way: {
            "ms": 1e3
            * (statistics.median(found[many]) - statistics.median(found[few]))
            / (many - few),
            "seconds": {str(n): values for n, values in found.items()},
            "pss": {str(n): statistics.median(peaks[way][n]) for n in (few, many)},
        }
        for way, found in seconds.items()
    }


def show(result: dict[str, Any]) -> None:
    for side in SIDES if "decoding" in result else ():
        ways = result["decoding"][str(side)]
        print(f"\nCPU ms per image of {side} px, to {STORED} px")
        for name, taken in ways.items():
            print(f"  {name:24}{taken:8.2f}  {ways['pillow'] / taken:6.2f} x Pillow's rate")
    if "prepare" in result:
        show_prepare(result["prepare"])
    if "training" in result:
        step, peaks = result["training"]["step"], result["training"]["memory"]
        base, ours = (statistics.median(step[name]) for name in ("plain torch", "ours"))
        print(f"\na step of {ARCH}, batch {BATCH}: {ours:.3f} s CPU, plain torch {base:.3f}; ")
        print(f"  {base / ours:.3f} of its rate\npeak anonymous memory of training")
        for name, found in peaks.items():
            share = found["anonymous"] / peaks["plain torch"]["anonymous"]
            print(f"  {name:12}{found['anonymous'] / MIB:8.0f} MiB, {share:.2f} of plain torch's")


def show_prepare(result: dict[str, Any]) -> None:
    few, many = map(str, result["images"])
    print(f"\nprepare, JPEGs of 500 px; peaks with {few} and {many} images")
    alone = result["pillow"]["ms"]
    for way in ("pillow", "prepare"):
        found = result[way]
        peaks = " and ".join(f"{found['pss'][n] / MIB:.0f}" for n in (few, many))
        share = alone / found["ms"]
        print(f"  {way:8}{found['ms']:6.2f} ms, {share:.2f} of Pillow's rate; {peaks} MiB")


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--photos", type=Path, required="--worker" not in sys.argv,
                         help="folder of JPEGs")  # fmt: skip
    options.add_argument("--images", type=count, default=250, help="N")
    options.add_argument("--threads", type=count, help="torch's own choice by default")
    options.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options.add_argument("--save", action="store_true", help=f"write the parts into {RESULTS}")
    options.add_argument("--worker", choices=list(WORKERS), help=argparse.SUPPRESS)
    options.add_argument("--steps", type=count, help=argparse.SUPPRESS)
    options.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.worker:
        print(json.dumps(WORKERS[arguments.worker](arguments)))
        return
    result = measure(arguments)
    show(result)
    if arguments.save:
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        write_whole(RESULTS, json.dumps(kept | result, indent=2) + "\n")


WORKERS = {"rate": rate, "memory": memory}


if __name__ == "__main__":
    run(main)
