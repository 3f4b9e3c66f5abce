"""The stage `export`: a student as an ONNX file, compared with torch on the test split."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import warnings
from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch

from pipeline.core.errors import PipelineError, refusals
from pipeline.core.files import sha256, whole_folder
from pipeline.data.answers import agreement
from pipeline.data.records import PACKED, Manifest, load_split
from pipeline.export.batch_axis import read_image_once, write_means
from pipeline.export.evaluate import logits_of
from pipeline.export.records import EXPORTED, ONNX, PARITY, Parity
from pipeline.export.session import load
from pipeline.networks.inference import predict, set_up_torch
from pipeline.networks.layers import list_layers
from pipeline.networks.pixels import PixelsToLogits
from pipeline.networks.records import Layers, ModelCard
from pipeline.networks.shipped import shipped
from pipeline.networks.weights import check_card, load_pixels_to_logits

MIN_AGREEMENT = 0.99
"""Below this share of equal answers the export is broken, not imprecise."""


def export_student(student: str, opset: int, pruned: Collection[str] = ()) -> Parity:
    """Stage `export@S`: write models/onnx/S/.

    The folder gets `model.onnx`, `layers.json`, `parity.json` and `test_logits.npy`: torch's logits
    float32 [N, classes] of the test split, which every compiled artifact is compared with.

    Args:
        student: its name.
        opset: of the ONNX file.
        pruned: the students that ship pruned, `prune.enabled`.

    Returns:
        How well ONNX Runtime and torch agree.

    Raises:
        PipelineError: where the ONNX checker finds a fault, or too few answers are torch's.
    """
    set_up_torch(0)  # nothing is random; it forbids nondeterministic kernels
    folder = shipped(student, pruned).folder
    model, card = load_pixels_to_logits(folder)
    manifest = Manifest.read(PACKED / "manifest.json")
    check_card(card, manifest, folder)
    images, _ = load_split(manifest.final)
    with whole_folder(ONNX / student) as scratch:
        file = scratch / "model.onnx"
        export_onnx(model, card, opset, file)
        torch_logits = predict(model, images).numpy()
        onnx_logits = logits_of(load(str(file), os.cpu_count() or 1), images, label="parity")
        error = np.abs(torch_logits - onnx_logits)
        parity = Parity(
            images=len(images),
            same_argmax=agreement(torch_logits, onnx_logits),
            max_logit_error=float(error.max()),
            mean_logit_error=float(error.mean()),
            opset=opset,
            versions={name: importlib.metadata.version(name) for name in _TOOLS},
        )
        if not parity.same_argmax >= MIN_AGREEMENT:
            raise PipelineError(
                f"ONNX Runtime and torch agree on only {parity.same_argmax:.1%} of the images",
                where=f"export of {student}",
                fix="try another `export.opset`, and report the architecture",
            )
        np.save(scratch / "test_logits.npy", torch_logits)
        layers = list_layers(model, card.image_size, card.channels)
        Layers(layers=layers).write(scratch / "layers.json")
        digests = {name: sha256(scratch / name) for name in EXPORTED}
        parity = parity.model_copy(update={"digests": digests})
        parity.write(scratch / PARITY)
    return parity


_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime")


def export_onnx(model: PixelsToLogits, card: ModelCard, opset: int, file: Path) -> None:
    """Write `model` as ONNX with a dynamic batch axis.

    Args:
        model: a student.
        card: of that student; classes and the input format go into the file's metadata.
        opset: of the ONNX file.
        file: to be written.

    Raises:
        PipelineError: where torch cannot export the network, or the ONNX checker finds a fault.
    """
    example = torch.zeros(2, card.image_size, card.image_size, card.channels, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch = ({0: torch.export.Dim("batch")},)
    refused = partial(refusals, where=f"export of {card.arch}", fix="choose another student")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        with refused("torch.export"):
            # As torch.onnx.export does it, between whose steps nothing can be changed.
            captured = torch.export.export(
                model,
                (example,),
                dynamic_shapes=batch,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        write_means(captured)
        with refused("torch.onnx"):
            program = torch.onnx.export(
                captured,
                dynamo=True,
                opset_version=opset,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=batch,
                external_data=False,
                verbose=False,
            )
    assert program is not None  # as with dynamo=False alone
    proto = _without_traces(program.model_proto)
    read_image_once(proto.graph, card.arch)
    onnx.helper.set_model_props(
        proto,
        {
            "classes": json.dumps(card.classes),
            "input": "image: uint8 [N, H, W, C], raw pixels in [0, 255]",
            "output": "logits: float32 [N, classes]",
        },
    )
    try:
        onnx.checker.check_model(proto, full_check=True)
    except onnx.checker.ValidationError as error:
        raise PipelineError(f"the ONNX checker found: {error}", where=str(file)) from None
    onnx.save(proto, file)


def _without_traces(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the exporter's notes on source lines, which hold paths of this machine."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
    del proto.graph.metadata_props[:]
    return proto
