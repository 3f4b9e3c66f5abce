"""Which units go: those that cost the least accuracy for what they save, over all layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.networks.records import Layer
from pipeline.prune.coupling import Coupling, Units

Scores = Mapping[str, NDArray[np.float64]]
"""Of every unit, by root: what the loss is feared to rise by without it."""


@dataclass(frozen=True)
class Rules:
    """What is left of a coupling at least, and in which steps it shrinks."""

    multiple_of: int
    min_share: float
    whole: Mapping[str, int]
    """Units of the unpruned network, by root."""

    def sizes(self, one: Coupling) -> list[int]:
        """The numbers of units that may be left, falling, the present one first.

        The root then has a multiple of `multiple_of` channels, and at least `min_share` of those
        that it had before any pruning.
        """
        step = self.multiple_of // math.gcd(self.multiple_of, one.ways)
        least = max(step, math.ceil(self.min_share * self.whole[one.root]))
        top = (one.units - 1) // step * step
        return [one.units, *range(top, least - 1, -step)]


class Costs:
    """What layers cost as a function of how many units are left of each coupling."""

    def __init__(self, layers: Sequence[Layer], cut: Sequence[Coupling], what: str) -> None:
        """The cost of a network before anything is removed.

        Args:
            layers: its convolutions and linear layers.
            cut: its couplings.
            what: `macs`, or `weights`.
        """
        self._whole = {layer.name: float(getattr(layer, what)) for layer in layers}
        self._sides: dict[str, list[tuple[int, str, float]]] = {}
        """By root: side 0, input, or 1, output, the layer, and channels per unit."""
        channels: dict[tuple[int, str], float] = {}
        for one in cut:
            both = ((0, one.reads), (1, one.makes))
            self._sides[one.root] = [
                (side, layer, per)
                for side, its in both
                for layer, per in its.items()
                if layer in self._whole
            ]
            for side, layer, per in self._sides[one.root]:
                channels[side, layer] = channels.get((side, layer), 0.0) + per * one.units
        self._channels, self._lost = channels, dict.fromkeys(channels, 0.0)

    def total(self) -> float:
        """The cost of all layers."""
        return sum(self._of(layer) for layer in self._whole)

    def saved(self, root: str, units: int) -> float:
        """By how much the cost falls without so many more units of a coupling."""
        layers = {layer for _, layer, _ in self._sides[root]}
        before = sum(map(self._of, layers))
        self.remove(root, units)
        after = sum(map(self._of, layers))
        self.remove(root, -units)
        return before - after

    def remove(self, root: str, units: int) -> None:
        """Count so many more units of a coupling as removed."""
        for side, layer, per in self._sides[root]:
            self._lost[side, layer] += per * units

    def beside(self, root: str) -> set[str]:
        """The couplings that share a layer with this one, itself among them."""
        layers = {layer for _, layer, _ in self._sides[root]}
        return {
            other
            for other, sides in self._sides.items()
            if other == root or any(layer in layers for _, layer, _ in sides)
        }

    def _of(self, layer: str) -> float:
        share = 1.0
        for side in (0, 1):
            if whole := self._channels.get((side, layer)):
                share *= 1 - self._lost[side, layer] / whole
        return self._whole[layer] * share


def choose(
    cut: Sequence[Coupling], scores: Scores, costs: Costs, rules: Rules, most: float
) -> Units:
    """The units to remove until the cost is at most `most`, or until no rule allows more.

    Greedily, the block of units goes that has the lowest score for each unit of cost that it
    saves; a block makes the number of channels the next multiple. Group Fisher pruning divides by
    the saved cost in the same way (arXiv 2108.00708).

    Args:
        cut: the couplings of the network.
        scores: of their units.
        costs: of the network; counts what is removed.
        rules: what is left at least.
        most: of the cost.
    """
    open_ones = {
        one.root: _Stack(one, scores[one.root], rules.sizes(one), costs)
        for one in cut
        if len(rules.sizes(one)) > 1
    }
    prices = {root: its.price() for root, its in open_ones.items()}
    while costs.total() > most:
        best = min(prices, key=lambda root: prices[root], default="")
        if prices.get(best, math.inf) == math.inf:
            break
        open_ones[best].take()
        for root in costs.beside(best) & open_ones.keys():
            prices[root] = open_ones[root].price()
    # The last block may have saved more than was needed: give back what fits, the dearest first.
    fits = costs.total() <= most
    while fits:
        taken = [its for its in open_ones.values() if its.done]
        fits = any(its.give_back(most) for its in sorted(taken, key=lambda its: -its.dearest()))
    return {root: its.removed() for root, its in open_ones.items() if its.done}


class _Stack:
    """The units of a coupling, the least important ones first, in blocks."""

    def __init__(
        self, one: Coupling, scores: NDArray[np.float64], sizes: list[int], costs: Costs
    ) -> None:
        self._root, self._costs, self._scores = one.root, costs, scores
        self._order = np.argsort(scores, kind="stable")
        self._removed = [one.units - size for size in sizes]
        """Units that are removed once so many blocks are taken."""
        self.done = 0

    def removed(self) -> list[int]:
        """The units in the blocks that were taken, sorted."""
        return sorted(int(unit) for unit in self._order[: self._removed[self.done]])

    def price(self) -> float:
        """The score of the next block by what it saves; infinite where none is left."""
        if self.done + 1 == len(self._removed):
            return math.inf
        saved = self._costs.saved(self._root, self._size(self.done))
        return self._score(self.done) / saved if saved > 0 else math.inf

    def dearest(self) -> float:
        """The score of the block that was taken last."""
        return self._score(self.done - 1)

    def take(self) -> None:
        """Remove the next block."""
        self._costs.remove(self._root, self._size(self.done))
        self.done += 1

    def give_back(self, most: float) -> bool:
        """Take back the last block if the cost stays at most `most`; whether it did."""
        size = self._size(self.done - 1)
        self._costs.remove(self._root, -size)
        if self._costs.total() > most:
            self._costs.remove(self._root, size)
            return False
        self.done -= 1
        return True

    def _size(self, place: int) -> int:
        return self._removed[place + 1] - self._removed[place]

    def _score(self, place: int) -> float:
        first, last = self._removed[place], self._removed[place + 1]
        return float(self._scores[self._order[first:last]].sum())
