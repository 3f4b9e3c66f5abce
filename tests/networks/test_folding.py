"""Batch norms that become part of convolutions, and those that must not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.networks.build import build_network
from pipeline.networks.folding import fold_batch_norm
from pipeline.networks.params import Network


def drawn(model: nn.Module) -> nn.Module:
    """`model` in float64, with drawn statistics, scales and shifts in its batch norms."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for values in (module.running_mean, module.bias):
                nn.init.normal_(values, std=0.1)
            for values in (module.running_var, module.weight):
                nn.init.uniform_(values, 0.5, 1.5)
    return model.double().eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


@pytest.mark.parametrize(
    "arch", ["mobilenetv4_conv_small_050", "mobilenetv3_small_050", "resnet10t", "efficientnet_b0"]
)
def test_a_real_network_answers_the_same_without_batch_norms(arch: str) -> None:
    model = drawn(build_network(Network(arch=arch), classes=10, channels=3, image_size=32))
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold_batch_norm(model, images[:1])
    assert norms(model) > 0 == norms(folded)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(folded(images), expected)
    assert expected.std() > 1e-3, "answers that do not depend on the images prove nothing"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} of the original changed"


class Block(nn.Module):
    """Two convolutions and a batch norm each, wired by `wiring`."""

    def __init__(self, wiring: Callable[[Block, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.other = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
        self.norm, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.wiring = wiring

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wiring(self, x)


@pytest.mark.parametrize(
    ("wiring", "left"),
    [
        (lambda m, x: m.second(m.other(m.norm(m.conv(x)))), 0),
        (lambda m, x: m.norm(y := m.conv(x)) + y.relu(), 2),  # read by another, too
        (lambda m, x: m.norm(m.conv(x)) + m.second(m.conv(x)), 2),  # one convolution, used twice
        (lambda m, x: m.norm(m.conv(x)) + m.norm(m.other(x)), 2),  # one batch norm, used twice
        (lambda m, x: m.norm(m.conv(x).relu()), 2),  # something lies between
        (lambda m, x: m.norm(x), 2),
    ],
)
def test_only_a_pair_that_nothing_else_uses_is_folded(
    wiring: Callable[[Block, torch.Tensor], torch.Tensor], left: int
) -> None:
    model = drawn(Block(wiring))
    images = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    folded = fold_batch_norm(model, images[:1])
    assert norms(folded) == left
    with torch.no_grad():
        torch.testing.assert_close(folded(images), model(images))
