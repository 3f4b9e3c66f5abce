"""What this room's tests share: a student of ten classes, and its int8 form in ONNX Runtime."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.job import Job
from pipeline.backends.base.qdq import quantize
from pipeline.export.onnx import export_onnx
from pipeline.export.session import load
from pipeline.networks.pixels import PixelsToLogits
from pipeline.networks.records import ModelCard
from tests import students as drawn
from tests.training.conftest import configured, fashion, folder  # noqa: F401 - fixtures


@functools.cache
def _trained(act: str) -> tuple[nn.Module, ModelCard]:
    return drawn.train(act)


def trained(act: str) -> tuple[PixelsToLogits, ModelCard]:
    """A student of ten classes, as if loaded from its folder."""
    network, card = copy.deepcopy(_trained(act))
    channels_last = network.to(memory_format=torch.channels_last)
    return PixelsToLogits(channels_last, card.normalisation).eval(), card


@torch.no_grad()
def make_uneven(network: nn.Module, factor: float = 128) -> None:
    """Make one channel per activation so much larger, and what reads it that much smaller.

    With ReLU between them the float network stays the same, and per-tensor ranges get steps
    that are too coarse for all other channels. `network` is a `drawn.train("relu")`.
    """
    readers = [
        (network.bn1, network.blocks[0][0].conv.weight[:, 0]),
        (network.bn2, network.classifier.weight[:, 0]),
    ]
    readers += [(stage[0].bn1, stage[0].conv_dw.weight[0]) for stage in network.blocks[3:]]
    for norm, reader in readers:
        norm.weight[0] *= factor
        norm.bias[0] *= factor
        reader /= factor


def int8_logits(
    student: PixelsToLogits, card: ModelCard, calibration: np.ndarray, images: np.ndarray
) -> torch.Tensor:
    """What ONNX Runtime answers once its own quantizer has made the student int8."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch, "float.onnx"), Path(scratch, "int8.onnx")
        export_onnx(student, card, opset=20, file=source)
        artifact = Artifact("student", "onnxruntime", "int8")
        job = Job(artifact, source, Path(scratch), calibration, manifest=None)
        onnx.save(quantize(job, "uint8").model, target)
        return torch.from_numpy(load(str(target), threads=1)(images))
