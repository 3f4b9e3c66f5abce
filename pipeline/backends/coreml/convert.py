"""Students as ML programs: exported by torch, converted by coremltools, written as .mlpackage."""

from __future__ import annotations

import contextlib
import io
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from pipeline.backends.base.job import Job
from pipeline.backends.coreml.mil import quiet
from pipeline.networks.pixels import PixelsToLogits
from pipeline.networks.weights import load_pixels_to_logits

with quiet():
    import coremltools

_DECOMPOSED = {
    torch.ops.aten.addcmul.default: lambda x, a, b, value=1: x + value * a * b,
    torch.ops.aten.alias.default: lambda x: x,
}
"""Operators of torch that coremltools 9.0 does not know."""
_BROKEN = "common::reduce_transposes"
"""A pass of coremltools 9.0 that fails on a product of a matrix with its own transpose."""
_SAYS_WHEN = "com.github.apple.coremltools.conversion_date"
_LABELS = "classes"


class _Image(nn.Module):
    """A student as Core ML calls it: an image float32 [1, C, H, W] of raw pixels to logits."""

    def __init__(self, model: PixelsToLogits) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        mean, scale = (one[:, None, None] for one in (self.model.mean, self.model.scale))
        return cast(torch.Tensor, self.model.network((image - mean) * scale))


def convert(job: Job, precision: str, target: str) -> Any:
    """The job's student as coremltools' `MLModel`, see `program_of`, with texts for its users."""
    model, card = load_pixels_to_logits(job.weights)
    with job.refusals("Core ML's converter"):
        made = program_of(
            model, (card.image_size, card.image_size, card.channels), precision, target
        )
    made.short_description = f"{card.arch}: an image classifier of {len(card.classes)} classes"
    made.input_description["image"] = "raw pixels; normalisation is inside the model"
    made.output_description["logits"] = "the largest is the class; softmax gives probabilities"
    made.user_defined_metadata[_LABELS] = json.dumps(card.classes, ensure_ascii=False)
    return made


def program_of(
    model: PixelsToLogits, shape: tuple[int, int, int], precision: str, target: str
) -> Any:
    """A network, which takes images as they are, as coremltools' `MLModel`.

    Its input `image` is one image of 8-bit pixels, grey or RGB, its output `logits` float32
    [1, classes].

    Args:
        model: in eval mode.
        shape: height, width and channels of the image.
        precision: `fp32`, or `fp16` for float16 weights and activations.
        target: the oldest system, such as `iOS17`; other systems of the same year have it, too.
    """
    height, width, channels = shape
    given = (1, channels, height, width)
    layouts, precisions = coremltools.colorlayout, coremltools.precision
    with converting(), torch.no_grad():
        exported = torch.export.export(_Image(model), (torch.zeros(given),))
        return coremltools.convert(
            exported.run_decompositions(_DECOMPOSED),
            inputs=[
                coremltools.ImageType(
                    name="image",
                    shape=given,
                    color_layout=layouts.GRAYSCALE if channels == 1 else layouts.RGB,
                )
            ],
            outputs=[coremltools.TensorType(name="logits", dtype=np.float32)],
            minimum_deployment_target=coremltools.target[target],
            compute_precision=precisions.FLOAT16 if precision == "fp16" else precisions.FLOAT32,
            pass_pipeline=passes(),
            skip_model_load=True,
        )


def passes() -> Any:
    """What coremltools does to a program, without what fails."""
    pipeline = coremltools.PassPipeline()
    pipeline.remove_passes({_BROKEN})
    return pipeline


def write(model: Any, folder: Path) -> None:
    """Write an `MLModel` as the package `folder`: the same model gives the same bytes.

    coremltools draws the identifiers of the manifest and notes the day; here the identifiers are
    those of the names, and no day is noted. Nothing else of the package is changed.
    """
    with converting():
        model.save(str(folder))
    manifest = json.loads((folder / "Manifest.json").read_text())
    items = {item["path"]: item for item in manifest["itemInfoEntries"].values()}
    own = {path: str(uuid.uuid5(uuid.NAMESPACE_OID, path)) for path in sorted(items)}
    root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    manifest["itemInfoEntries"] = {own[path]: items[path] for path in own}
    manifest["rootModelIdentifier"] = own[root]
    (folder / "Manifest.json").write_text(json.dumps(manifest, indent=4) + "\n")
    (folder / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    file = folder / "Data" / root
    spec = coremltools.proto.Model_pb2.Model.FromString(file.read_bytes())
    spec.description.metadata.userDefined.pop(_SAYS_WHEN, None)
    file.write_bytes(spec.SerializeToString(deterministic=True))


@contextlib.contextmanager
def converting() -> Iterator[None]:
    """Within this, coremltools draws no bars and says nothing of other packages; errors pass."""
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        yield
