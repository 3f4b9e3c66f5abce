"""Which units go, what that saves, and how a measured goal is found."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.networks.build import build_network
from pipeline.networks.layers import list_layers
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.records import Layer
from pipeline.prune.choice import Costs, Rules, choose
from pipeline.prune.cost import largest_share
from pipeline.prune.coupling import Coupling, couplings, remove
from pipeline.prune.importance import fisher, magnitude
from pipeline.training.teacher import Supervised

IMAGE = torch.zeros(1, 1, 28, 28)


def coupling(root: str, units: int, *reads: str, ways: int = 1) -> Coupling:
    return Coupling(root, units, ways, {root: float(ways)}, dict.fromkeys(reads, float(ways)), ())


# a -> b -> c, of 16, 32 and 10 output channels
LAYERS = (
    Layer(name="a", macs=16 * 100, weights=16),
    Layer(name="b", macs=16 * 32 * 100, weights=16 * 32),
    Layer(name="c", macs=32 * 10, weights=32 * 10),
)
CUT = (coupling("a", 16, "b"), coupling("b", 32, "c"))


def rules(multiple_of: int = 8, min_share: float = 0.0) -> Rules:
    return Rules(multiple_of, min_share, {one.root: one.units for one in CUT})


def test_costs_are_products_of_what_is_left() -> None:
    costs = Costs(LAYERS, CUT, "macs")
    assert costs.total() == 1600 + 51200 + 320
    assert costs.saved("a", 8) == pytest.approx(800 + 25600)
    costs.remove("a", 8)
    costs.remove("b", 8)
    assert costs.total() == pytest.approx(800 + 8 * 24 * 100 + 240)
    assert costs.beside("a") == {"a", "b"}


def test_the_cheapest_loss_for_what_it_saves_goes_first() -> None:
    scores = {"a": np.linspace(16, 1, 16), "b": np.full(32, 0.1)}
    gone = choose(CUT, scores, Costs(LAYERS, CUT, "macs"), rules(), 0.76 * 53120)
    assert gone == {"b": list(range(8))}
    scores = {"a": np.linspace(1.6, 0.1, 16), "b": np.full(32, 10.0)}
    gone = choose(CUT, scores, Costs(LAYERS, CUT, "macs"), rules(), 0.75 * 53120)
    assert gone == {"a": list(range(8, 16))}


@pytest.mark.parametrize(("multiple_of", "min_share"), [(8, 0.5), (16, 0.25), (1, 0.9), (4, 0.0)])
def test_rules_are_kept_where_all_may_go(multiple_of: int, min_share: float) -> None:
    scores = {one.root: np.ones(one.units) for one in CUT}
    gone = choose(CUT, scores, Costs(LAYERS, CUT, "macs"), rules(multiple_of, min_share), 0.0)
    for one in CUT:
        left = one.units - len(gone.get(one.root, ()))
        assert left >= min_share * one.units and left >= 1
        assert left == one.units or left % multiple_of == 0
        assert left - multiple_of < max(min_share * one.units, 1)


def test_a_grouped_convolution_keeps_a_multiple_in_all_groups_together() -> None:
    one = coupling("a", 12, "b", ways=4)
    assert Rules(8, 0.0, {"a": 12}).sizes(one) == [12, 10, 8, 6, 4, 2]


def test_what_was_removed_beyond_need_is_given_back() -> None:
    # b's block is cheap and not enough, a's then saves all that is asked for
    scores = {"a": np.full(16, 1.0), "b": np.full(32, 0.7)}
    gone = choose(CUT, scores, Costs(LAYERS, CUT, "macs"), rules(), 0.505 * 53120)
    assert gone == {"a": list(range(8))}


@pytest.mark.parametrize("arch", ["mobilenetv3_small_050", "regnetx_002", "resnet10t"])
def test_the_saved_macs_and_weights_are_those_of_the_pruned_network(arch: str) -> None:
    network = build_network(Network(arch=arch), classes=7, channels=1, image_size=28).eval()
    cut = couplings(network, IMAGE)

    def layers(one: nn.Module) -> tuple[Layer, ...]:
        return list_layers(PixelsToLogits(one, student_normalisation(1)), 28, 1)

    random = np.random.default_rng(0)
    scores = {one.root: random.random(one.units) for one in cut}
    whole = Rules(8, 0.25, {one.root: one.units for one in cut})
    for what in ("macs", "weights"):
        before = layers(network)
        most = 0.6 * sum(getattr(layer, what) for layer in before)
        costs = Costs(before, cut, what)
        gone = choose(cut, scores, costs, whole, most)
        pruned = deepcopy(network)
        remove(pruned, IMAGE, cut, gone)
        left = sum(getattr(layer, what) for layer in layers(pruned))
        assert left == pytest.approx(costs.total())
        assert 0.9 * most < left <= most


@pytest.mark.parametrize(
    "cost", [lambda s: s, lambda s: 0.3 + 0.7 * s, lambda s: s**2, lambda s: s**0.5]
)
def test_a_measured_goal_is_kept_and_nearly_used(cost: Callable[[float], float]) -> None:
    tried: list[float] = []

    def measured(share: float) -> float:
        tried.append(share)
        return cost(share)

    share = largest_share(measured, 0.6, (0.1, 1.0), 0.6)
    assert share in tried and 0.57 < cost(share) <= 0.6 and len(tried) <= 6


def test_a_goal_that_nothing_keeps_ends_at_the_smallest_share() -> None:
    assert largest_share(lambda share: 0.9 + share / 10, 0.5, (0.2, 1.0), 0.5) == 0.2


class Tiny(nn.Module):
    """A residual block, so that two layers read the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.back = (
            nn.Conv2d(1, 4, 3),
            nn.Conv2d(4, 3, 1),
            nn.Conv2d(3, 4, 1),
        )
        self.fc = nn.Linear(4, 2)
        self.gates: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.stem(x))
        gates = torch.ones(len(x), 4) if self.gates is None else self.gates
        shortcut = x
        x = shortcut + self.back(self.inner(x * gates[:, :, None, None]))
        return self.fc(x.mean((2, 3)) * gates)


def test_fisher_is_the_mean_square_of_the_gates_derivatives() -> None:
    """Against autograd through gates that the network itself has, image by image."""
    torch.manual_seed(0)
    network = Tiny()
    model = PixelsToLogits(network, student_normalisation(1))
    objective = Supervised(model, 0.0)
    cut = couplings(network, torch.zeros(1, 1, 5, 5))
    pixels = torch.randint(0, 256, (6, 5, 5, 1), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    found = fisher(objective, cut, [(pixels[:4], labels[:4], None), (pixels[4:], labels[4:], None)])
    (stream,) = (one for one in cut if "stem" in one.makes)
    expected = torch.zeros(4)
    for i in range(6):
        network.gates = torch.ones(1, 4, requires_grad=True)
        sum(objective(pixels[i : i + 1], labels[i : i + 1], None, 1.0).values()).backward()
        assert network.gates.grad is not None
        expected += network.gates.grad[0].square() / 6
    np.testing.assert_allclose(found[stream.root], expected.numpy(), rtol=1e-4)
    assert objective.training and network.stem.weight.grad is not None


def test_magnitude_is_the_energy_of_the_weights_that_read_a_unit() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1), nn.Flatten())
    network[1].weight.data = torch.tensor([[1.0, 2.0], [2.0, 4.0]])[:, :, None, None]
    found = magnitude(network, couplings(network, torch.zeros(1, 3, 1, 1)))
    np.testing.assert_allclose(found["0"], [5 / 12.5, 20 / 12.5])
