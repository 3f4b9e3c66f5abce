"""Students as .tflite files in float, converted from torch by litert-torch."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.backends.base.job import Job
from pipeline.backends.tflite.run import load
from pipeline.core.errors import PipelineError
from pipeline.networks import grid
from pipeline.networks.records import CARD, WEIGHTS

if TYPE_CHECKING:
    import torch

SAMPLES = 16
"""Calibration images that check a conversion."""
MAX_ERROR = 1e-3
"""Largest error of a converted logit, relative to the largest logit."""


class Conversions:
    """Float .tflite files of students, each converted once in the life of this object.

    A conversion takes seconds, and several precisions of a student start from the same one.
    """

    def __init__(self) -> None:
        self._made: dict[str, bytes] = {}

    def from_pixels(self, job: Job) -> bytes:
        """The student with `image` uint8 [1, H, W, C] as its input: raw pixels."""
        return self._once(job, "pixels", _from_pixels)

    def from_normalised(self, job: Job, *, decompose_hard_swish: bool) -> bytes:
        """The student with `image` float32 [1, H, W, C] as its input: (x - 128) / 64.

        Args:
            job: whose student is converted.
            decompose_hard_swish: write hard-swish as x / 6 * relu6(x + 3) (arXiv 1905.02244).
                XNNPACK has int8 kernels for these three operators, and none for hard-swish.

        Raises:
            PipelineError: for a student that normalises in another way.
        """
        if decompose_hard_swish:
            return self._once(job, "decomposed", _from_decomposed)
        return self._once(job, "normalised", _from_normalised)

    def _once(self, job: Job, kind: str, make: Callable[[Job], bytes]) -> bytes:
        key = conversion_key(job, kind)
        if key not in self._made:
            self._made[key] = make(job)
        return self._made[key]


def conversion_key(job: Job, kind: str) -> str:
    """A digest of all that decides a conversion of this `kind` in one environment."""
    digest = hashlib.sha256(kind.encode())
    for name in (WEIGHTS, CARD):
        digest.update((job.weights / name).read_bytes())
    digest.update(job.calibration[:SAMPLES].tobytes())
    return digest.hexdigest()


def _from_pixels(job: Job) -> bytes:
    import torch

    from pipeline.networks.weights import load_pixels_to_logits

    model, _ = load_pixels_to_logits(job.weights)
    return convert(model, torch.tensor(job.calibration[:SAMPLES]), job.refusals("litert-torch"))


def _from_decomposed(job: Job) -> bytes:
    import torch

    class Decomposed(torch.nn.Module):
        """Hard-swish in a form that litert-torch 0.10 does not turn back into one operator.

        It recognises x * relu6(x + 3) / 6, with any brackets.
        """

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (1 / 6) * torch.nn.functional.relu6(x + 3)

    return _from_normalised(job, Decomposed)


def _from_normalised(job: Job, hard_swish: Callable[[], torch.nn.Module] | None = None) -> bytes:
    import torch
    from litert_torch import to_channel_last_io

    from pipeline.networks.pixels import student_normalisation
    from pipeline.networks.stem import replace_hard_swish
    from pipeline.networks.weights import load_model

    network, card = load_model(job.weights)
    if card.normalisation != student_normalisation(card.channels):
        raise PipelineError(
            f"normalised by mean {card.normalisation.mean}, std {card.normalisation.std}: "
            "pixels are int8 input only for mean 128, std 64",
            where=str(job.weights),
            fix="train the student with (x - 128) / 64",
        )
    if hard_swish is not None:
        replace_hard_swish(network, hard_swish)
    samples = torch.tensor(grid.normalise(job.calibration[:SAMPLES]))
    return convert(to_channel_last_io(network, args=[0]), samples, job.refusals("litert-torch"))


def convert(
    model: torch.nn.Module,
    samples: torch.Tensor,
    refusals: AbstractContextManager[None] | None = None,
) -> bytes:
    """Convert `model` to a .tflite with the input `image` and the output `logits`.

    Args:
        model: takes `samples` and gives logits [N, classes].
        samples: inputs [N, H, W, C] that check the conversion; the file takes one of them.
        refusals: encloses the conversion: see `Job.refusals`.

    Raises:
        PipelineError: for a network that litert-torch refuses, and where LiteRT's logits differ
            from torch's by more than `MAX_ERROR`.
    """
    import litert_torch
    import torch

    from pipeline.networks.folding import fold_batch_norm

    folded = fold_batch_norm(model, samples[:1])

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = folded

        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.model(image)}

    # litert-torch 0.10 identifies constants by the address of their contiguous copy. The copy of a
    # weight in channels-last layout is freed at once, and the next one at its address gets lost.
    for tensor in (*folded.parameters(), *folded.buffers()):
        tensor.data = tensor.data.contiguous()
    with refusals or nullcontext():
        converted = litert_torch.convert(Named().eval(), sample_kwargs={"image": samples[:1]})
    content = bytes(converted.model_content())
    with torch.no_grad():
        expected = model(samples).numpy()
    error = np.abs(load(content, threads=1)(samples.numpy()) - expected).max()
    if not error <= MAX_ERROR * np.abs(expected).max():
        raise PipelineError(
            f"litert-torch changed the network: logits of LiteRT and torch differ by {error:.2g}",
            fix="try another version of litert-torch, and report the architecture",
        )
    return content


def with_pixel_input(content: bytes) -> bytes:
    """The float input of a quantized model becomes uint8 with scale 1/64, zero point 128.

    The QUANTIZE operator behind it then maps uint8 to int8.
    """
    return _with_input(content, "UINT8", scale=[grid.SCALE], zeroPoint=[grid.CENTRE])


def with_float_input(content: bytes) -> bytes:
    """The opposite of `with_pixel_input`."""
    return _with_input(content, "FLOAT32")


def _with_input(content: bytes, kind: str, **quantization: list[Any]) -> bytes:
    from ai_edge_litert.schema_py_generated import QuantizationParametersT, TensorType

    with edited(content) as edit:
        graph = edit.model.subgraphs[0]
        image = graph.tensors[graph.inputs[0]]
        image.type = getattr(TensorType, kind)
        image.quantization = QuantizationParametersT(**quantization)
    return edit.content


def with_finite_padding(content: bytes, ranges: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """A model and its ranges in which the border of a max pool is no longer minus infinity.

    int8 has no infinity. The least value of the pool's input is as good: every window has at least
    one value of the input, so the largest is the same.

    Args:
        content: of a float model.
        ranges: `min` and `max` by the name of the tensor.
    """
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    ranges = dict(ranges)
    least: dict[int, float] = {}  # by buffer, which several pools may share
    with edited(content) as edit:
        graph, codes = edit.model.subgraphs[0], edit.model.operatorCodes
        for operator in graph.operators:
            if codes[operator.opcodeIndex].builtinCode != BuiltinOperator.PADV2:
                continue
            padded, _, value = (graph.tensors[i] for i in operator.inputs)
            constant = edit.model.buffers[value.buffer]
            if constant.data is None or np.frombuffer(constant.data, np.float32) != -np.inf:
                continue
            known = ranges[padded.name.decode()]
            lowest = float(np.min(known["min"]))
            least[value.buffer] = min(least.get(value.buffer, lowest), lowest)
            ranges[graph.tensors[operator.outputs[0]].name.decode()] = known
        for buffer, lowest in least.items():
            edit.model.buffers[buffer].data = np.array([lowest], np.float32).view(np.uint8)
    return edit.content, ranges


@dataclass
class _Edit:
    """A model as objects, and the content that they were written to."""

    model: Any
    content: bytes = b""


@contextlib.contextmanager
def edited(content: bytes) -> Iterator[_Edit]:
    """A model whose objects can be changed; afterwards `content` is what was made of them."""
    from ai_edge_litert.tools import flatbuffer_utils

    edit = _Edit(flatbuffer_utils.read_model_from_bytearray(bytearray(content)))
    for buffer in edit.model.buffers:
        if buffer.data is not None:  # other types than arrays are packed byte by byte: seconds
            buffer.data = np.frombuffer(buffer.data, np.uint8)
    yield edit
    edit.content = bytes(flatbuffer_utils.convert_object_to_bytearray(edit.model))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the converters' progress and known warnings; errors and other warnings pass."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    for chatty in ("torchao", "torch.utils._pytree"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*preserve_all_tensors.*")
        yield
