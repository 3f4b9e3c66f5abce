"""What a network's convolutions and linear layers are said to cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.networks.build import build_network
from pipeline.networks.layers import list_layers
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from tests.backends.conftest import count_macs


@pytest.mark.parametrize("arch", ["mobilenetv4_conv_small_050", "mobilenetv3_small_050"])
def test_every_layer_in_order_with_what_it_multiplies_and_holds(arch: str) -> None:
    network = build_network(Network(arch=arch), classes=10, channels=3, image_size=32)
    model = PixelsToLogits(network, student_normalisation(3)).eval()
    layers = list_layers(model, 32, 3)
    assert [layer.macs for layer in layers] == count_macs(model, (32, 32, 3))
    modules = dict(network.named_modules())
    assert all(layer.weights == modules[layer.name].weight.numel() for layer in layers)
    assert layers[0].name == "conv_stem" and layers[-1].name == "classifier"


class Twice(nn.Module):
    """One convolution, met twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.conv(x)).mean((2, 3))


def test_a_layer_that_is_met_twice_works_twice_and_is_held_once() -> None:
    (layer,) = list_layers(PixelsToLogits(Twice(), student_normalisation(2)), 3, 2)
    assert (layer.name, layer.macs, layer.weights) == ("conv", 2 * 9 * 2 * 2, 2 * 2)
