"""Networks on disk: weights as safetensors, and a card beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.data.records import Manifest
from pipeline.networks.branches import fuse_branches
from pipeline.networks.build import build_network
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits
from pipeline.networks.records import CARD, WEIGHTS, ModelCard


def save_model(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Write `model.safetensors` and `card.json`, with the digest of the weights, into a folder."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)
    described = card.model_copy(update={"weights_digest": sha256(folder / WEIGHTS)})
    described.write(folder / CARD)


def load_model(folder: Path, *, fuse: bool = True) -> tuple[nn.Module, ModelCard]:
    """The network of a `save_model` folder in eval mode, channels-last, and its card.

    Args:
        folder: of the card and weights.
        fuse: branches that serve training alone are fused, see `fuse_branches`; False: they stay,
            for a network that is trained further.

    Raises:
        PipelineError: for a card or weights that are missing, damaged or of another run.
    """
    card = ModelCard.read_beside(folder)
    network = Network(
        arch=card.arch,
        args=card.args,
        stem_stride=card.stem_stride,
        stem_pool=card.stem_pool,
        hard_swish=card.hard_swish,
    )
    model = build_network(
        network,
        classes=len(card.classes),
        channels=card.channels,
        image_size=card.input_size,
        shapes=card.shapes,
    )
    load_weights(model, folder / WEIGHTS)
    made = fuse_branches(model.eval()) if fuse else model.eval()
    return made.to(memory_format=torch.channels_last), card  # type: ignore[call-overload]


def load_pixels_to_logits(folder: Path) -> tuple[PixelsToLogits, ModelCard]:
    """The network of a `save_model` folder with its normalisation inside, in eval mode."""
    network, card = load_model(folder)
    size = None if card.input_size == card.image_size else card.input_size
    return PixelsToLogits(network, card.normalisation, size).eval(), card


def load_weights(model: nn.Module, file: Path) -> None:
    """Fill `model` from a safetensors file.

    Raises:
        PipelineError: for another format, a tensor of another shape, and for tensors that are
            missing or that the network does not have.
    """
    if not file.is_file():
        raise PipelineError("there is no such checkpoint", where=str(file))
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise PipelineError(
            f"not a safetensors file ({error})",
            where=str(file),
            fix="convert it: `safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
            "'model.safetensors')`",
        ) from None
    expected = model.state_dict()
    for name, tensor in tensors.items():
        if name in expected and tensor.shape != expected[name].shape:
            raise PipelineError(
                f"`{name}` has shape {list(tensor.shape)}, this run needs "
                f"{list(expected[name].shape)}{_class_hint(model, name, tensor)}",
                where=str(file),
                fix="use a checkpoint of the same network and classes, "
                "or name it in `weights`, which makes a new classifier",
            )
    if tensors.keys() != expected.keys():
        missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
        raise PipelineError(
            f"other tensors than the network has: {len(missing)} missing {sorted(missing)[:3]}, "
            f"{len(unknown)} unknown {sorted(unknown)[:3]}",
            where=str(file),
            fix="name the architecture and arguments that the checkpoint was made with",
        )
    model.load_state_dict(tensors)


def _class_hint(model: nn.Module, name: str, tensor: torch.Tensor) -> str:
    head = cast(dict[str, Any], model.pretrained_cfg).get("classifier")
    if isinstance(head, str) and name.startswith(f"{head}."):
        return f": the checkpoint knows {tensor.shape[0]} classes"
    return ""


def check_classes(card: ModelCard, manifest: Manifest, where: Path) -> None:
    """Raise `PipelineError` unless a network knows the classes of the data."""
    if card.classes != manifest.classes:
        raise PipelineError(
            f"made for the classes {', '.join(card.classes)}; "
            f"the data has {', '.join(manifest.classes)}",
            where=str(where),
            fix="run `dvc repro`; to start from a network of other classes, name its file in "
            "`weights`, which makes a new classifier",
        )


def check_card(card: ModelCard, manifest: Manifest, folder: Path) -> None:
    """Raise `PipelineError` unless a network in `folder` was made from the data that is packed."""
    check_classes(card, manifest, folder / CARD)
    if card.data_digest != manifest.digests["train_images.npy"]:
        raise PipelineError(
            "was made from other train images than data/packed has",
            where=str(folder / CARD),
            fix="run `dvc repro`",
        )
