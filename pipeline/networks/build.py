"""Networks of timm by name, with the changes that small images and int8 need."""

from __future__ import annotations

import difflib
import importlib.metadata

import torch
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.core.patches import import_timm
from pipeline.core.text import show
from pipeline.networks.params import Network
from pipeline.networks.records import Shapes
from pipeline.networks.shapes import reshape
from pipeline.networks.stem import change_hard_swish, change_stem


def build_network(
    network: Network, *, classes: int, channels: int, image_size: int, shapes: Shapes | None = None
) -> nn.Module:
    """A timm network from normalised images float [N, C, H, W] to logits [N, classes].

    Args:
        network: its timm name, arguments and changes.
        classes: number of logits.
        channels: of the images.
        image_size: their height and width in pixels.
        shapes: of a pruned network, whose changed tensors are zeros.

    Raises:
        PipelineError: for an unknown name, arguments that the network does not take, a change that
            it does not allow, and a network that gives no logits for such images.
    """
    timm = import_timm()
    if not timm.is_model(network.arch):
        close = difflib.get_close_matches(network.arch, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise PipelineError(f"timm {timm.__version__} has no network `{network.arch}`{hint}")
    try:
        model: nn.Module = timm.create_model(
            network.arch,
            num_classes=classes,
            in_chans=channels,
            **network.args,
        )
    except Exception as error:  # timm meets arguments that a network cannot take with any type
        raise _unfit(network, _said(error)) from None
    change_stem(model, network, image_size)
    change_hard_swish(model, network)
    if shapes is not None:
        reshape(model, shapes, f"{network.arch}, pruned")
    _try(model, network, classes, torch.zeros(1, channels, image_size, image_size))
    return model


def _said(error: Exception) -> str:
    """The type and the first line of an error that timm raised; many have no text of their own."""
    return f"{type(error).__name__}: {error}".partition("\n")[0].removesuffix(": ")


def _unfit(network: Network, problem: str) -> PipelineError:
    return PipelineError(
        f"timm cannot build or run it: {problem}",
        where=f"{network.arch} with args {show(network.args)}",
        fix="correct `arch` or `args` (a vision transformer needs `img_size`)",
    )


@torch.no_grad()
def _try(model: nn.Module, network: Network, classes: int, image: torch.Tensor) -> None:
    """One forward pass, so that an unfit network is an error before the training starts."""
    try:
        logits = model.eval()(image)
    except Exception as error:  # as above: `channels` of three stages is an AttributeError here
        raise _unfit(network, _said(error)) from None
    finally:
        model.train()
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, classes):
        raise _unfit(network, "it does not give one logit per class")


def parameter_count(model: nn.Module) -> int:
    """Number of single parameters; buffers do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def tool_versions() -> dict[str, str]:
    """Versions of torch and timm, which decide the weights that a run ends with."""
    return {name: importlib.metadata.version(name) for name in ("torch", "timm")}
