"""Taps: features of any timm network by module path."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.core.errors import PipelineError


class Taps:
    """Keeps the output of named modules, `features`, in every forward pass.

    Args:
        network: gets a forward hook on each module.
        taps: module path by tap name, such as `{"late": "blocks.4"}`.
        whose: the network's name, for errors.

    Raises:
        PipelineError: for a path that the network does not have, with the nearest ones.
    """

    def __init__(self, network: nn.Module, taps: dict[str, str], whose: str) -> None:
        self.whose = whose
        self.features: dict[str, torch.Tensor] = {}
        self.versions: dict[str, int] = {}
        modules = dict(network.named_modules())
        for name, path in taps.items():
            if path not in modules:
                close = difflib.get_close_matches(path, modules, n=4, cutoff=0.3)
                raise PipelineError(
                    f"no module `{path}`; near are {', '.join(close) or 'none'}",
                    where=f"tap `{name}` of {whose}",
                    fix="`python -m pipeline taps` lists the names of a network",
                )
            modules[path].register_forward_hook(self._keep(name))

    def _keep(self, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.features[name] = output
            if isinstance(output, torch.Tensor):
                self.versions[name] = output._version

        return hook


@torch.no_grad()
def tap_shapes(network: nn.Module, taps: Taps, image: torch.Tensor) -> dict[str, torch.Size]:
    """Shapes [1, F, H, W] of the tapped features, by tap name.

    Args:
        network: takes `image` in one forward pass.
        taps: of the network.
        image: [1, H, W, C] raw pixels, or whatever the network takes.

    Raises:
        PipelineError: for an output that is no feature map, or that a later module changes in
            place, so that a loss would see the changed values.
    """
    training = network.training
    network.eval()(image)
    network.train(training)
    for name, features in taps.features.items():
        if not isinstance(features, torch.Tensor) or features.ndim != 4:
            shape = list(features.shape) if isinstance(features, torch.Tensor) else "no tensor"
            raise PipelineError(
                f"its output has shape {shape}; a feature map is [N, F, H, W]",
                where=f"tap `{name}` of {taps.whose}",
                fix="tap a convolutional block",
            )
        if features._version != taps.versions[name]:
            raise PipelineError(
                "a later module changes its output in place",
                where=f"tap `{name}` of {taps.whose}",
                fix="tap the activation behind it",
            )
    return {name: features.shape for name, features in taps.features.items()}


@dataclass(frozen=True)
class Module:
    """A module of a network, its type, and the shape [F, H, W] of its feature map."""

    path: str
    kind: str
    shape: tuple[int, int, int]


@torch.no_grad()
def list_taps(network: nn.Module, image: torch.Tensor) -> list[Module]:
    """Every module of `network` whose output is a feature map, for an `image` [1, C, H, W].

    Modules whose output a later module changes in place are left out: they cannot be tapped.
    """
    found: list[tuple[Module, torch.Tensor, int]] = []

    def note(path: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.ndim == 4:
                channels, height, width = output.shape[1:]
                made = Module(path, type(module).__name__, (channels, height, width))
                found.append((made, output, output._version))

        return hook

    handles = [
        module.register_forward_hook(note(path, module))
        for path, module in network.named_modules()
        if path
    ]
    try:
        network.eval()(image)
    finally:
        for handle in handles:
            handle.remove()
    return [made for made, output, version in found if output._version == version]
