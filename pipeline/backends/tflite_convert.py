"""Students as .tflite files in float, converted from torch by litert-torch."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base import Job, versions
from pipeline.errors import PipelineError
from pipeline.files import sha256, write_whole

if TYPE_CHECKING:
    import torch

SAMPLES = 16
"""Calibration images that check the conversion."""
MAX_ERROR = 1e-3
"""Largest error of a converted logit, as a share of the largest logit."""
CONVERTED = Path(".work/tflite")
"""Conversions take most of a compile stage's time, and several precisions want the same."""

_PACKAGES = ("litert-torch",)


def from_pixels(job: Job) -> bytes:
    """The student with `image` uint8 [1, H, W, C] as its input: raw pixels."""
    import torch

    from pipeline.networks.build import load_pixels_to_logits

    def make() -> bytes:
        model, _ = load_pixels_to_logits(job.student_folder)
        return convert(model, torch.tensor(job.calibration[:SAMPLES]))

    return _once(job, "pixels", make)


def from_normalised(job: Job, *, decompose_hard_swish: bool) -> bytes:
    """The student with `image` float32 [1, H, W, C] as its input: (x - 128) / 64.

    Hard-swish can be written as x / 6 * relu6(x + 3) (arXiv 1905.02244): XNNPACK has int8
    kernels for these three operators, and none for it. In x * relu6(x + 3) / 6, however it is
    bracketed, litert-torch 0.10 recognises a hard-swish and puts it back.

    Raises `PipelineError` for a student that normalises otherwise.
    """
    import torch
    from litert_torch import to_channel_last_io

    from pipeline.networks.build import load_model, replace_hard_swish, student_normalisation

    class Decomposed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (1 / 6) * torch.nn.functional.relu6(x + 3)

    def make() -> bytes:
        network, card = load_model(job.student_folder)
        if card.normalisation != student_normalisation(card.channels):
            raise PipelineError(
                f"normalised by mean {card.normalisation.mean}, std {card.normalisation.std}: "
                "pixels are int8 input only for mean 128, std 64",
                where=str(job.student_folder),
                fix="train the student with (x - 128) / 64",
            )
        if decompose_hard_swish:
            replace_hard_swish(network, Decomposed)
        samples = torch.tensor(normalised(job.calibration[:SAMPLES]))
        return convert(to_channel_last_io(network, args=[0]), samples)

    return _once(job, "decomposed" if decompose_hard_swish else "normalised", make)


def normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(x - 128) / 64, exactly."""
    return (pixels.astype(np.float32) - np.float32(128)) / np.float32(64)


def _once(job: Job, kind: str, make: Callable[[], bytes]) -> bytes:
    """What `make` gives, or gave before for the same student, by the same code and packages."""
    from pipeline.distill.checkpoints import run_key

    student = [sha256(job.student_folder / name) for name in ("model.safetensors", "card.json")]
    samples = hashlib.sha256(job.calibration[:SAMPLES].tobytes()).hexdigest()
    key = run_key(kind, *student, samples, versions(_PACKAGES))
    file = CONVERTED / f"{job.student}-{kind}-{key}.tflite"
    if not file.exists():
        for old in CONVERTED.glob(f"{job.student}-{kind}-*"):
            old.unlink()
        write_whole(file, make())
    return file.read_bytes()


def convert(model: torch.nn.Module, samples: torch.Tensor) -> bytes:
    """A .tflite of `model` with input `image`, one of `samples`, and output `logits`.

    Raises `PipelineError` unless LiteRT's answers to `samples` are torch's.
    """
    import litert_torch
    import torch
    from ai_edge_litert.interpreter import Interpreter

    from pipeline.networks.folding import fold_batch_norm

    folded = fold_batch_norm(model, samples[:1])

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = folded

        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.model(image)}

    # litert-torch 0.10 knows constants by the address of their contiguous copy. A weight in
    # channels-last layout has a copy of a moment, and the next one at its address gets lost.
    for tensor in (*folded.parameters(), *folded.buffers()):
        tensor.data = tensor.data.contiguous()
    converted = litert_torch.convert(Named().eval(), sample_kwargs={"image": samples[:1]})
    content = bytes(converted.model_content())
    with torch.no_grad():
        expected = model(samples).numpy()
    error = np.abs(runner(Interpreter(model_content=content))(samples.numpy()) - expected).max()
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
    return _with_input(content, "UINT8", scale=[1 / 64], zeroPoint=[128])


def with_float_input(content: bytes) -> bytes:
    """The opposite of `with_pixel_input`."""
    return _with_input(content, "FLOAT32")


def _with_input(content: bytes, kind: str, **quantization: list[Any]) -> bytes:
    from ai_edge_litert.schema_py_generated import QuantizationParametersT, TensorType
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    for buffer in model.buffers:
        if buffer.data is not None:  # anything but an array is packed byte by byte, in seconds
            buffer.data = np.frombuffer(buffer.data, np.uint8)
    graph = model.subgraphs[0]
    image = graph.tensors[graph.inputs[0]]
    image.type = getattr(TensorType, kind)
    image.quantization = QuantizationParametersT(**quantization)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def runner(interpreter: Any) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    interpreter.allocate_tensors()
    image = interpreter.get_input_details()[0]["index"]
    output = interpreter.get_output_details()[0]

    def run(images: NDArray[Any]) -> NDArray[np.float32]:
        logits = np.empty((len(images), output["shape"][-1]), np.float32)
        for i in range(len(images)):
            interpreter.set_tensor(image, images[i : i + 1])
            interpreter.invoke()
            logits[i] = interpreter.get_tensor(output["index"])[0]
        return logits

    return run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what the converters say about themselves; errors and other warnings pass."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    for chatty in ("torchao", "torch.utils._pytree"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*preserve_all_tensors.*")
        yield
