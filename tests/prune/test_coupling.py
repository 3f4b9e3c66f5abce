"""A network without some channels computes what it computed with these channels at zero."""

from __future__ import annotations

import sys
from copy import deepcopy

import pytest
import torch
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.networks.build import build_network
from pipeline.networks.params import Network
from pipeline.networks.shapes import reshape, shapes_of
from pipeline.prune.coupling import couplings, library, remove, silence
from pipeline.prune.trial import prunable

SIZE = 32
IMAGE = torch.zeros(1, 3, SIZE, SIZE)
ARCHS = (
    "mobilenetv4_conv_small_035",
    "mobilenetv3_small_050",  # squeeze-and-excitation
    "resnet10t",  # residual sums
    "regnetx_002",  # groups of 8 channels
    "repvgg_a0",  # branches that are summed
    "mobileone_s0",  # and depthwise ones
)


def build(arch: str, classes: int = 7) -> nn.Module:
    torch.manual_seed(0)
    network = Network(arch=arch)
    return build_network(network, classes=classes, channels=3, image_size=SIZE).eval()


@pytest.mark.parametrize("arch", ARCHS)
def test_every_channel_but_those_of_the_logits_can_go(arch: str) -> None:
    network = build(arch)
    found = prunable(network, IMAGE, arch)
    made = {layer for one in found for layer in one.makes}
    layers = {path for path, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    (logits,) = layers - made
    assert network.get_submodule(logits).out_features == 7


@pytest.mark.parametrize("arch", ARCHS)
def test_what_is_left_computes_the_same_and_is_rebuilt_from_its_shapes(arch: str) -> None:
    network, random = build(arch), torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # else the last one of each residual branch is 0
            module.weight.data.uniform_(0.5, 1.5, generator=random)
            module.bias.data.uniform_(-0.5, 0.5, generator=random)
    found = prunable(network, IMAGE, arch)
    units = {one.root: range(one.units // 3) for one in found}
    without, silent = deepcopy(network), deepcopy(network)
    remove(without, IMAGE, found, units)
    silence(silent, IMAGE, found, units)
    image = torch.randn(2, 3, SIZE, SIZE, generator=random)
    torch.testing.assert_close(without(image), silent(image), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(silent(image), network(image), rtol=1e-2)
    rebuilt = build_network(
        Network(arch=arch), classes=7, channels=3, image_size=SIZE,
        shapes=shapes_of(without, network),
    ).eval()  # fmt: skip
    rebuilt.load_state_dict(without.state_dict())
    assert torch.equal(rebuilt(image), without(image))
    for one, two in zip(rebuilt.modules(), without.modules(), strict=True):
        assert repr(one) == repr(two)


def test_by_hand() -> None:
    """Two convolutions: unit 1 is a filter of the first and an input of the second."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten())
    image = torch.randn(1, 3, 3, 3)
    (one,) = couplings(network, image)
    assert (one.root, one.units, one.ways) == ("0", 4, 1)
    assert (one.makes, one.reads) == ({"0": 1}, {"2": 1})
    expected = deepcopy(network)
    expected[0].weight.data = expected[0].weight.data[[0, 2, 3]]
    expected[0].bias.data = expected[0].bias.data[[0, 2, 3]]
    expected[2].weight.data = expected[2].weight.data[:, [0, 2, 3]]
    expected[0].out_channels = expected[2].in_channels = 3
    remove(network, image, [one], {"0": [1]})
    assert torch.equal(network(image), expected(image))


def test_a_unit_of_a_grouped_convolution_is_a_channel_of_every_group() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 5, 1), nn.Flatten()
    )
    first, second = sorted(couplings(network, torch.zeros(1, 3, 1, 1)), key=lambda one: one.root)
    assert (first.ways, first.units, first.channels([1])) == (2, 4, [1, 5])
    assert (second.ways, second.units) == (2, 4)


class Heads(nn.Module):
    """Counts its channels in numbers of its own."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1))
        self.free = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 7)
        self.fixed = fixed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.convs(x)
        x = x.reshape(len(x), 2, 8, -1).sum(1)[..., None]
        if not self.fixed:
            x = self.free(x)
        return self.fc(x.mean((2, 3)))


def test_what_counts_its_own_channels_keeps_them() -> None:
    roots = {one.root for one in prunable(Heads(fixed=False), torch.zeros(1, 3, 2, 2), "heads")}
    assert roots == {"convs.0", "free"}


def test_attention_keeps_its_heads() -> None:
    network = build_network(
        Network(arch="vit_tiny_patch16_224", args={"img_size": 32, "depth": 1}),
        classes=7, channels=3, image_size=32,
    )  # fmt: skip
    made = {layer for one in prunable(network, IMAGE, "vit") for layer in one.makes}
    assert "blocks.0.attn.qkv" not in made and "blocks.0.mlp.fc1" in made


def test_a_network_without_channels_that_can_go_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 7, 1), nn.Flatten())
    with pytest.raises(PipelineError, match="no channel of this network can be pruned") as error:
        prunable(network, torch.zeros(1, 3, 1, 1), "plain")
    assert "plain" in str(error.value)


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(PipelineError, match=r"torch-pruning is not installed") as error:
        library()
    assert ".[prune]" in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "groups", "said"),
    [
        ({"conv1.weight": (128, 3, 7, 7)}, {}, "`conv1.weight` of shape"),
        ({"none.weight": (1,)}, {}, "none of this name"),
        ({}, {"fc": 2}, "a convolution `fc`"),
    ],
)
def test_shapes_of_another_network_are_refused(
    tensors: dict[str, tuple[int, ...]], groups: dict[str, int], said: str
) -> None:
    shapes = shapes_of(build("resnet10t"), build("resnet10t"))
    other = shapes.model_copy(update={"tensors": tensors, "groups": groups})
    with pytest.raises(PipelineError, match=said):
        reshape(build("resnet10t"), other, "card.json")
