"""Peak memory of evaluating a split and of a training step, for images of several sizes.

Each is measured in a process of its own, on the same untrained network and random images: some SGD
steps as in `training.loop`, `networks.inference.evaluate`, and `export.evaluate.logits_of` through
ONNX Runtime. What is counted is the growth of anonymous memory (RssAnon) over the network and the
opened session. The training batches are small ones, which is the harder comparison.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.shared import count, one_device
from benchmarks.training_memory import MIB, Watch, status
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import write_whole
from pipeline.core.patches import conv2d
from pipeline.data.batches import images_per_call
from pipeline.export.evaluate import logits_of
from pipeline.export.onnx import export_onnx
from pipeline.export.session import load
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.networks.build import build_network
from pipeline.networks.inference import evaluate
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.records import ModelCard
from pipeline.training.convolutions import fast_conv2d
from pipeline.training.teacher import Supervised

RESULTS = Path("benchmarks/results/evaluation_memory.json")
SIZES = {28: (128, 600), 224: (16, 20), 512: (4, 4)}
"""By height and width: images of a training step, and of the split."""

STEPS, CLASSES, CHANNELS = 2, 10, 3
WORK = ("train", "evaluate", "onnxruntime")


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """The worker: one kind of work at one size."""
    fabric = one_device(arguments.threads)
    size, (batch, images) = arguments.size, SIZES[arguments.size]
    network = build_network(
        Network(arch=arguments.arch),
        classes=CLASSES,
        channels=CHANNELS,
        image_size=size,
        pretrained=False,
    )
    model = PixelsToLogits(network, student_normalisation(CHANNELS))
    supervised = Supervised(model, label_smoothing=0.0)
    supervised.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    rng = np.random.default_rng(0)
    shape = (batch if arguments.work == "train" else images, size, size, CHANNELS)
    pixels, labels = rng.integers(0, 256, shape, np.uint8), rng.integers(0, CLASSES, shape[0])
    if arguments.work == "onnxruntime":
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.onnx")
            card = ModelCard.model_construct(image_size=size, channels=CHANNELS, classes=("a",))
            export_onnx(model.eval(), card, 20, file)
            runner = load(str(file), torch.get_num_threads())
    before = status("RssAnon")
    with Watch() as watch:
        if arguments.work == "train":
            train(supervised, torch.from_numpy(pixels), torch.from_numpy(labels))
        elif arguments.work == "evaluate":
            evaluate(model, pixels, labels)
        else:
            logits_of(runner, pixels)
    per_call = batch if arguments.work == "train" else images_per_call(500, size, size)
    return {
        "size": size,
        "work": arguments.work,
        "per_call": min(per_call, shape[0]),
        "growth": watch.highest - before,
    }


def train(supervised: Supervised, pixels: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(supervised.parameters(), lr=0.001, momentum=0.9)
    supervised.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        with conv2d(fast_conv2d):
            terms = supervised(pixels, labels)
        terms["cross_entropy"].backward()
        optimizer.step()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All sizes and kinds of work, each in a new process, with what belongs to the result."""
    rows = []
    for size in SIZES:
        for kind in WORK:
            command = [sys.executable, "-m", "benchmarks.evaluation_memory", "--work", kind]
            command += ["--size", str(size), "--arch", arguments.arch]
            if arguments.threads is not None:
                command += ["--threads", str(arguments.threads)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                raise PipelineError(f"{kind} at {size} pixels failed")
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    packages = ("torch", "timm", "onnxruntime", "numpy")
    return {
        "machine": read_fingerprint().model_dump(mode="json", exclude={"runtimes"}),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "network": arguments.arch,
        "rows": rows,
    }


def show(result: dict[str, Any]) -> None:
    print(f"{result['network']} on {result['machine']['cpu']}")
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()))
    print(f"\n{'pixels':>8}  {'work':<12}{'images a call':>14}{'MiB':>10}{'of training':>13}")
    steps = {row["size"]: row["growth"] for row in result["rows"] if row["work"] == "train"}
    for row in result["rows"]:
        share = row["growth"] / steps[row["size"]]
        print(
            f"{row['size']:>8}  {row['work']:<12}{row['per_call']:>14}"
            f"{row['growth'] / MIB:>10.0f}{share:>13.0%}"
        )


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--arch", default="efficientnet_lite0", help="a timm name")
    options.add_argument("--threads", type=count, help="torch's own choice by default")
    options.add_argument("--save", action="store_true", help=f"write {RESULTS}")
    options.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    options.add_argument("--size", type=count, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.work:
        print(json.dumps(work(arguments)))
        return
    result = measure(arguments)
    show(result)
    if arguments.save:
        write_whole(RESULTS, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    run(main)
