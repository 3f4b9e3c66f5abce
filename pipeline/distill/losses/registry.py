"""The registry that params.yaml names losses by, and the check of what it says of them."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipeline.distill.losses.numerics import LossFunction, in_full_precision
from pipeline.errors import PipelineError
from pipeline.params import LossTerm

Target = Literal["labels", "logits", "features", "maps", "relations", "levels"]

WHERE = "distill.losses"


@dataclass(frozen=True)
class Loss:
    """A registered loss and what it compares: `function(student, other, *, options)`.

    With N samples, C classes, F channels and H x W positions:
    labels: student logits [N, C] with labels, int64 [N] or class probabilities [N, C].
    logits: both logits [N, C]; with `needs_labels`, labels come third.
    features: both [N, F, H, W], equal shapes (an adapter matches them).
    maps: both [N, F, H, W], equal in N, H and W.
    relations: both [N, ...], equal in N.
    levels: two sequences of [N, F, H, W], shallow to deep, equal shapes at each level.

    The value is a scalar of at least float32. Where a loss is `batchwise`, it compares samples
    with each other: the mean over the parts of a batch is not the value of the whole batch.
    """

    function: LossFunction
    target: Target
    needs_labels: bool = False
    batchwise: bool = False
    positive: tuple[str, ...] = ()
    fractions: tuple[str, ...] = ()

    @property
    def taps(self) -> bool:
        return self.target not in ("labels", "logits")


LOSSES: dict[str, Loss] = {}


def register(
    name: str,
    target: Target,
    *,
    needs_labels: bool = False,
    batchwise: bool = False,
    positive: tuple[str, ...] = (),
    fractions: tuple[str, ...] = (),
) -> Callable[[LossFunction], LossFunction]:
    """Make a pure function known to `distill.losses`; its keyword arguments are `options`.

    Options whose default is a bool are switches, all others finite numbers of at least 0:
    those in `positive` above 0, those in `fractions` at most 1. The function computes in at
    least float32, under autocast as well.
    """

    def add(function: LossFunction) -> LossFunction:
        if name in LOSSES:
            raise ValueError(f"there are two losses `{name}`")
        function = in_full_precision(function)
        LOSSES[name] = Loss(function, target, needs_labels, batchwise, positive, fractions)
        return function

    return add


def find_loss(term: LossTerm) -> Loss:
    """The loss that a term names; `PipelineError` for a wrong name, option, tap or teacher."""
    if term.name not in LOSSES:
        close = difflib.get_close_matches(term.name, LOSSES, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known are {', '.join(LOSSES)}"
        raise PipelineError(f"there is no loss `{term.name}`; {hint}", where=WHERE)
    loss = LOSSES[term.name]
    _check_options(term, loss)
    _check_taps(term, loss)
    return loss


def _check_options(term: LossTerm, loss: Loss) -> None:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(loss.function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for option, value in term.options.items():
        if option not in defaults:
            raise PipelineError(
                f"`{term.name}` has no option `{option}`; "
                f"known are {', '.join(defaults) or 'none'}",
                where=WHERE,
            )
        if isinstance(defaults[option], bool):
            fits, wanted = isinstance(value, bool), "true or false"
        else:
            fits, wanted = not isinstance(value, bool) and math.isfinite(value), "a number"
            if option in loss.positive:
                fits, wanted = fits and value > 0, "above 0"
            elif option in loss.fractions:
                fits, wanted = fits and 0 <= value <= 1, "in [0, 1]"
            else:
                fits, wanted = fits and value >= 0, "at least 0"
        if not fits:
            raise PipelineError(
                f"option `{option}` of `{term.name}` must be {wanted} (found {value!r})",
                where=WHERE,
            )


def _check_taps(term: LossTerm, loss: Loss) -> None:
    given = f"(found {', '.join(term.taps) or 'none'})"
    if not loss.taps:
        if term.taps:
            raise PipelineError(f"`{term.name}` takes no `taps` {given}", where=WHERE)
        if term.teacher is not None:
            raise PipelineError(
                f"`{term.name}` takes no `teacher` (found {term.teacher}): it compares no taps",
                where=WHERE,
            )
    elif loss.target == "levels":
        if len(set(term.taps)) < max(2, len(term.taps)):
            raise PipelineError(
                f"`{term.name}` needs two or more different `taps`, shallow to deep {given}",
                where=WHERE,
            )
    elif len(term.taps) != 1:
        raise PipelineError(f"`{term.name}` needs exactly one of `taps` {given}", where=WHERE)
