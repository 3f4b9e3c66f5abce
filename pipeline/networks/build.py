"""timm networks with the changes that small images need, to and from disk."""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.contracts import CARD, ModelCard, Normalisation
from pipeline.errors import PipelineError
from pipeline.params import Network

SMALL_IMAGE = 64
"""Up to this many pixels `auto` keeps the resolution in the stem: stride 1, no pooling."""

WEIGHTS = "model.safetensors"


def build_network(
    network: Network, *, classes: int, channels: int, image_size: int, pretrained: bool = False
) -> nn.Module:
    """A timm network for float [N, `channels`, H, W] that gives logits [N, `classes`].

    With `pretrained`, timm's weights: its head is new, its stem adapted to `channels`.
    Raises `PipelineError` for an unknown name, arguments that the network does not take, a
    stem that has no such stride or pooling, a hard-swish to be replaced that is not there, and a
    network that gives no logits for such images.
    """
    if not timm.is_model(network.arch):
        close = difflib.get_close_matches(network.arch, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise PipelineError(f"timm {timm.__version__} has no network `{network.arch}`{hint}")
    try:
        model = timm.create_model(
            network.arch,
            pretrained=pretrained,
            num_classes=classes,
            in_chans=channels,
            **network.args,
        )
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise _unfit(network, error) from None
        raise PipelineError(
            f"the pretrained weights could not be loaded: {error}",
            where=network.arch,
            fix="check the network connection and `timm.list_pretrained()`, "
            "or use `source: train` or `source: checkpoint`",
        ) from None
    except (TypeError, ValueError, AttributeError, AssertionError) as error:
        raise _unfit(network, error) from None
    _change_stem(model, network, image_size)
    _change_hard_swish(model, network)
    _try(model, network, classes, torch.zeros(1, channels, image_size, image_size))
    return model


def _unfit(network: Network, problem: object) -> PipelineError:
    return PipelineError(
        f"{problem}",
        where=f"{network.arch} with args {network.args}",
        fix="mend `arch` or `args` (a vision transformer needs `img_size`)",
    )


@torch.no_grad()
def _try(model: nn.Module, network: Network, classes: int, image: torch.Tensor) -> None:
    """One forward pass: what a network does not take is told here, not an hour later."""
    try:
        logits = model.eval()(image)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise _unfit(network, error) from None
    finally:
        model.train()
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, classes):
        raise _unfit(network, "it does not give one logit per class")


def _change_stem(model: nn.Module, network: Network, image_size: int) -> None:
    small = image_size <= SMALL_IMAGE
    stem = _stem(model)
    if network.stem_stride != "auto":
        if stem is None:
            raise PipelineError(
                "it has no convolution as its stem whose stride could be set",
                where=network.arch,
                fix="`stem_stride: auto`, or another network",
            )
        stem.stride = (network.stem_stride, network.stem_stride)
    elif small and stem is not None:
        stem.stride = (1, 1)
    has_pool = isinstance(getattr(model, "maxpool", None), nn.Module)
    if network.stem_pool is True and not has_pool:
        raise PipelineError("it has no stem pooling", where=network.arch, fix="`stem_pool: auto`")
    if has_pool and (network.stem_pool is False or (network.stem_pool == "auto" and small)):
        model.maxpool = nn.Identity()


def _change_hard_swish(model: nn.Module, network: Network) -> None:
    """Put ReLU6 in the place of every hard-swish, if `network.hard_swish` asks for it."""
    if network.hard_swish == "relu6" and not replace_hard_swish(model, nn.ReLU6):
        raise PipelineError(
            "it has no hard-swish that could be replaced",
            where=network.arch,
            fix="`hard_swish: keep`",
        )


def replace_hard_swish(model: nn.Module, kind: Callable[[], nn.Module]) -> int:
    """Put a `kind` in the place of every hard-swish; how many there were."""
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Hardswish)
    ]
    for parent, name in places:
        setattr(parent, name, kind())
    return len(places)


def _stem(model: nn.Module) -> nn.Conv2d | None:
    """The first convolution, unless it cuts the image into patches: then its stride is fixed."""
    name = cast(dict[str, Any], model.pretrained_cfg).get("first_conv")
    stem = model.get_submodule(name) if isinstance(name, str) else None
    if not isinstance(stem, nn.Conv2d) or stem.stride == stem.kernel_size:
        return None
    return stem


class PixelsToLogits(nn.Module):
    """A network with its normalisation inside: raw pixels in, logits out.

    Pixels are uint8 [N, H, W, C] in [0, 255], logits float32 [N, classes]. This is the
    contract of every artifact. A teacher with an `input_size` of its own sees the images
    resized to it, square; None: as they are.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self, network: nn.Module, normalisation: Normalisation, input_size: int | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.normalisation = normalisation
        self.input_size = input_size
        self.register_buffer("mean", torch.tensor(normalisation.mean), persistent=False)
        scale = 1 / torch.tensor(normalisation.std)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        # The permuted NHWC tensor *is* channels-last memory, which the kernels prefer.
        images = ((pixels.float() - self.mean) * self.scale).permute(0, 3, 1, 2)
        if self.input_size is not None:
            size = (self.input_size, self.input_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return cast(torch.Tensor, self.network(images))


def student_normalisation(channels: int) -> Normalisation:
    """(x - 128) / 64: x - 128 is then the int8 input at scale 1/64, zero point 0, exactly."""
    return Normalisation(mean=(128.0,) * channels, std=(64.0,) * channels)


def pretrained_normalisation(model: nn.Module, channels: int) -> Normalisation:
    """The statistics that timm's weights were trained with, in [0, 255]."""
    config = cast(dict[str, Any], model.pretrained_cfg)
    mean, std = (tuple(255 * value for value in config[key]) for key in ("mean", "std"))
    if channels == 1:  # timm sums the stem's kernels over RGB: grey has the mean statistics
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return Normalisation(mean=mean, std=std)


def save_model(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Write `model.safetensors` and `card.json` into an existing folder."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)
    card.write(folder / CARD)


def load_model(folder: Path) -> tuple[nn.Module, ModelCard]:
    """The network of a `save_model` folder in eval mode, channels-last, and its card."""
    card = ModelCard.read(folder / CARD)
    network = Network(
        arch=card.arch,
        args=card.args,
        stem_stride=card.stem_stride,
        stem_pool=card.stem_pool,
        hard_swish=card.hard_swish,
    )
    model = build_network(
        network, classes=len(card.classes), channels=card.channels, image_size=card.input_size
    )
    load_weights(model, folder / WEIGHTS)
    return model.eval().to(memory_format=torch.channels_last), card  # type: ignore[call-overload]


def load_pixels_to_logits(folder: Path) -> tuple[PixelsToLogits, ModelCard]:
    """What ships: the network of `folder` with its normalisation inside, in eval mode."""
    network, card = load_model(folder)
    size = None if card.input_size == card.image_size else card.input_size
    return PixelsToLogits(network, card.normalisation, size).eval(), card


def load_weights(model: nn.Module, file: Path) -> None:
    """Fill `model` from a safetensors file; every tensor must be there and fit."""
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
                "or fine-tune: `source: pretrained`",
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


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def tool_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "timm")}
