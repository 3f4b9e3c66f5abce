"""Features by module name, and adapters that make two networks' features comparable."""

from __future__ import annotations

import difflib
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import PipelineError


class Taps:
    """Records the output of named modules at every forward pass.

    `taps` maps a tap's name to a module path (`{"late": "blocks.4"}`). Raises
    `PipelineError` with the nearest module names for a path that the network lacks.
    """

    def __init__(self, network: nn.Module, taps: dict[str, str], whose: str) -> None:
        self.features: dict[str, torch.Tensor] = {}
        modules = dict(network.named_modules())
        for name, path in taps.items():
            if path not in modules:
                close = difflib.get_close_matches(path, modules, n=4, cutoff=0.3)
                raise PipelineError(
                    f"no module `{path}`; near are {', '.join(close) or 'none'}",
                    where=f"tap `{name}` of {whose}",
                    fix="choose a name from `dict(network.named_modules())`",
                )
            modules[path].register_forward_hook(self._keep(name))

    def _keep(self, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            self.features[name] = output

        return hook


@torch.no_grad()
def tap_shapes(network: nn.Module, taps: Taps, image: torch.Tensor) -> dict[str, torch.Size]:
    """Shapes [1, F, H, W] of the tapped features, by one dry run on `image`."""
    training = network.training
    network.eval()(image)
    network.train(training)
    for name, features in taps.features.items():
        if features.ndim != 4:
            raise PipelineError(
                f"its output has shape {list(features.shape)}, a feature map is [N, F, H, W]",
                where=f"tap `{name}`",
                fix="tap a convolutional block",
            )
    return {name: features.shape for name, features in taps.features.items()}


class Adapter(nn.Module):
    """1x1 convolution and batch norm from student to teacher channels (arXiv 1412.6550)."""

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(teacher_channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        adapted: torch.Tensor = self.norm(self.project(features))
        return adapted


def match_size(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Average both [N, F, H, W] down to the smaller H and the smaller W of the two."""
    height, width = (min(student.shape[i], teacher.shape[i]) for i in (2, 3))
    return (
        F.adaptive_avg_pool2d(student, (height, width)),
        F.adaptive_avg_pool2d(teacher, (height, width)),
    )
