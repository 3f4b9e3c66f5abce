"""How much goes in each step, and which channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.compile.untrained import Shape
from pipeline.core.errors import PipelineError
from pipeline.core.files import temporary_folder
from pipeline.networks.build import build_network
from pipeline.networks.layers import list_layers
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.records import Layer, Shapes
from pipeline.networks.shapes import shapes_of
from pipeline.prune.choice import Costs, Rules, Scores, choose
from pipeline.prune.cost import Gauge, largest_share, reached
from pipeline.prune.coupling import Coupling, Units, couplings, remove
from pipeline.prune.params import PruneParams
from pipeline.prune.records import Measured, Plan
from pipeline.prune.trial import prunable

SHOWN = {"macs": "MACs", "weights": "weights", "p50": "p50", "kb": "kB"}
_ATTEMPTS = 5
"""To reach a share where layers lose more or fewer channels than `Costs` counts."""


class Surgeon:
    """Removes channels from the forms of one student."""

    def __init__(self, params: PruneParams, name: str, shape: Shape, before: nn.Module) -> None:
        """Find out what can be removed.

        Args:
            params: what the stage reads.
            name: of the student.
            shape: of its images and logits.
            before: the unpruned network; is not changed.

        Raises:
            PipelineError: for a network that cannot be pruned, and a missing library.
        """
        self.params, self.name, self.shape, self.before = params, name, shape, before
        self._normalisation = student_normalisation(shape.channels)
        self.image = torch.zeros(1, shape.channels, shape.image_size, shape.image_size)
        found = prunable(before, self.image, params.students.zoo[name].arch)
        its = params.prune
        whole = {one.root: one.units for one in found}
        self.rules = Rules(its.multiple_of, its.min_share, whole)
        self.what = "weights" if its.to.what == "kb" else "macs"
        self.layers = self._layers(self._model(before))
        self._total = sum(getattr(layer, self.what) for layer in self.layers)

    def fixed(self) -> tuple[str, ...]:
        """The layers of which no output channel can be removed, the classifier among them."""
        free = {layer for one in self.cut(self.before) for layer in one.makes}
        return tuple(layer.name for layer in self.layers if layer.name not in free)

    def cut(self, network: nn.Module) -> tuple[Coupling, ...]:
        """The couplings of a form from which units can be removed."""
        every = couplings(network, self.image)
        return tuple(one for one in every if one.root in self.rules.whole)

    def choose(self, network: nn.Module, scores: Scores, share: float) -> Units:
        """The units without which a form costs at most `share` of the unpruned network.

        Where the rules allow no such share, all that they allow.
        """
        cut, most = self.cut(network), share * self._total
        layers, aim = self._layers(self._model(network)), most
        units: Units = {}
        for _ in range(_ATTEMPTS):
            units = choose(cut, scores, Costs(layers, cut, self.what), self.rules, aim)
            left = self.share(self.without(network, units))
            if left <= share or aim == 0:
                break
            aim *= share / left
        return units

    def without(self, network: nn.Module, units: Units) -> nn.Module:
        """A form without some units, built anew from its shapes as for export."""
        smaller = self.copy(network)
        remove(smaller, self.image, self.cut(smaller), units)
        return self.copy(smaller)

    def copy(self, network: nn.Module) -> nn.Module:
        """A form on the CPU, without the hooks of losses and what several devices need."""
        built = self._build(self.shapes(network))
        built.load_state_dict(network.state_dict())
        return built.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def shapes(self, network: nn.Module) -> Shapes:
        """What tells a form from the unpruned architecture."""
        return shapes_of(network, self._build(None))

    def share(self, network: nn.Module) -> float:
        """The share of the unpruned network's MACs, or weights, that a form has."""
        layers = self._layers(self._model(network))
        found: float = sum(getattr(layer, self.what) for layer in layers) / self._total
        return found

    def lowest_share(self, network: nn.Module, scores: Scores) -> float:
        """The smallest share of MACs, or weights, that the rules allow."""
        return self.share(self.without(network, self.choose(network, scores, 0)))

    def macs_and_weights(self, network: nn.Module) -> tuple[int, int]:
        """Of all convolutions and linear layers of a form."""
        layers = self._layers(self._model(network))
        return sum(its.macs for its in layers), sum(its.weights for its in layers)

    def plan(self, network: nn.Module, scores: Scores, plan: Plan) -> Plan:
        """`plan` with one more step.

        Args:
            network: the form that the steps so far left.
            scores: of its units.
            plan: the steps so far.

        Raises:
            PipelineError: for a goal that the rules do not allow.
        """
        goal, steps, done = self.params.prune.to, self.params.prune.steps, len(plan.cuts)
        last, aim, measured = done + 1 == steps, plan.aim, None
        if goal.what == "macs":
            aim = goal.share
        elif aim is None or last:
            aim, measured = self._measured_aim(network, scores, goal.share if aim is None else aim)
        share = aim if last else aim ** ((done + 1) / steps)
        units = self.choose(network, scores, share)
        if last:
            found = self.share(self.without(network, units))
            self.check(found, measured)
        cut = {root: tuple(its) for root, its in units.items()}
        return Plan(cuts=(*plan.cuts, cut), aim=aim, measured=measured if last else None)

    def _measured_aim(
        self, network: nn.Module, scores: Scores, first: float
    ) -> tuple[float, Measured]:
        """The share of MACs or weights that reaches a measured goal, and what was measured."""
        goal = self.params.prune.to
        tried: dict[float, Measured] = {}
        with temporary_folder() as folder:
            gauge = Gauge(self.name, self.params, self.shape, self.before, Path(folder))

            def cost(share: float) -> float:
                form = self.without(network, self.choose(network, scores, share))
                tried[share] = gauge.measure(form, self.shapes(form), timed=goal.what == "p50")
                found = reached(goal, tried[share])
                print(
                    f"{self.name}: {share:.1%} of the {SHOWN[self.what]} take {found:.1%} of the "
                    f"{SHOWN[goal.what]} on {goal.backend} {goal.precision}",
                    flush=True,
                )
                return found

            ends = self.lowest_share(network, scores), self.share(network)
            aim = largest_share(cost, goal.share, ends, first)
            if aim not in tried:
                cost(aim)
        return aim, tried[aim]

    def check(self, share: float, measured: Measured | None) -> None:
        """Raise `PipelineError` where a form misses the goal.

        Args:
            share: of the MACs, or weights, that the form has.
            measured: what it costs; None: the goal is a share of MACs.
        """
        goal, its = self.params.prune.to, self.params.prune
        found = share if measured is None else reached(goal, measured)
        if found <= goal.share:
            return
        on = "" if measured is None else f" on {goal.backend} {goal.precision}"
        raise PipelineError(
            f"{goal.share:.0%} of its {SHOWN[goal.what]}{on} cannot be reached: {found:.1%} are "
            f"left with {share:.1%} of its {SHOWN[self.what]}, where every layer keeps at least "
            f"{its.min_share:.0%} of its channels, in multiples of {its.multiple_of}",
            where=f"prune.to for the student {self.name}",
            fix="raise the share, lower `prune.min_share` or `prune.multiple_of`, or choose a "
            "narrower network",
        )

    def _build(self, shapes: Shapes | None) -> nn.Module:
        its = self.params.students.zoo[self.name]
        return build_network(
            its,
            classes=self.shape.classes,
            channels=self.shape.channels,
            image_size=self.shape.image_size,
            shapes=shapes,
        ).eval()

    def _model(self, network: nn.Module) -> PixelsToLogits:
        return PixelsToLogits(network, self._normalisation)

    def _layers(self, model: PixelsToLogits) -> tuple[Layer, ...]:
        return list_layers(model, self.shape.image_size, self.shape.channels)


def check_prunable(
    params: PruneParams, name: str, shape: Shape, network: nn.Module, *, known: bool
) -> None:
    """Raise `PipelineError` unless an untrained student can be pruned to its share of MACs.

    Args:
        params: what the stage reads.
        name: of the student.
        shape: of its images and logits.
        network: the student; is not changed.
        known: whether `shape` is the data's; for another one the shares of the layers differ, and
            only whether channels can go at all is checked.
    """
    surgeon = Surgeon(params, name, shape, network)
    if known and params.prune.to.what == "macs":
        scores = {one.root: np.ones(one.units) for one in surgeon.cut(network)}
        surgeon.check(surgeon.lowest_share(network, scores), None)
