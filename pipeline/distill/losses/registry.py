"""Losses by the names in params.yaml, and checks of the terms there."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.core import plugins
from pipeline.core.errors import PipelineError
from pipeline.distill.losses.numerics import LossFunction, Operand, in_full_precision
from pipeline.distill.params import LossTerm

Target = Literal["labels", "logits", "features", "maps", "relations", "levels"]

KIND = "losses"
WHERE = "distill.losses"


@dataclass(frozen=True)
class Loss:
    """A registered loss `function(student, other, *, options)`, and the target it compares.

    With N samples, C classes, F channels and H x W positions:
    labels: student logits [N, C] with labels, int64 [N] or class probabilities [N, C].
    logits: both logits [N, C]; with `needs_labels`, labels come third.
    features: both [N, F, H, W], equal shapes (an adapter matches them).
    maps: both [N, F, H, W], equal in N, H and W.
    relations: both [N, ...], equal in N.
    levels: two sequences of [N, F, H, W], shallow to deep, equal shapes at each level.

    The value is a scalar of at least float32. A `batchwise` loss compares samples with each other,
    so its mean over parts of a batch is not its value for the whole batch.
    """

    function: LossFunction
    target: Target
    needs_labels: bool = False
    batchwise: bool = False
    positive: tuple[str, ...] = ()
    fractions: tuple[str, ...] = ()

    def __call__(self, *operands: Operand, **options: bool | float) -> torch.Tensor:
        """The loss of the student's operand, which comes first, against the others."""
        return self.function(*operands, **options)

    @property
    def taps(self) -> bool:
        """Whether it compares features of taps."""
        return self.target not in ("labels", "logits")


def loss(
    target: Target,
    *,
    needs_labels: bool = False,
    batchwise: bool = False,
    positive: tuple[str, ...] = (),
    fractions: tuple[str, ...] = (),
) -> Callable[[LossFunction], Loss]:
    """Make a loss of a pure function; its keyword-only arguments are the `options` of params.yaml.

    Options whose default is a bool are switches; all others are finite numbers of at least 0.

    Args:
        target: what it compares, see `Loss`.
        needs_labels: whether labels are its third argument.
        batchwise: whether it compares the samples of a batch with each other.
        positive: options that must be above 0.
        fractions: options that are at most 1.

    Example:
        A loss becomes known to params.yaml by an entry point `edgestill.losses`:

        >>> @loss("logits")
        ... def l1(student, teacher):
        ...     return (student - teacher).abs().mean()
    """

    def make(function: LossFunction) -> Loss:
        full = in_full_precision(function)
        return Loss(full, target, needs_labels, batchwise, positive, fractions)

    return make


def loss_names() -> tuple[str, ...]:
    """Every registered loss."""
    return plugins.names(KIND)


def find_loss(term: LossTerm) -> Loss:
    """The loss that a term of params.yaml names.

    Raises:
        PipelineError: for a wrong name, option, tap or teacher.
    """
    found: Loss = plugins.find(KIND, term.name, WHERE, Loss)
    _check_options(term, found)
    _check_taps(term, found)
    return found


def _check_options(term: LossTerm, found: Loss) -> None:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(found.function).parameters.items()
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
            if option in found.positive:
                fits, wanted = fits and value > 0, "above 0"
            elif option in found.fractions:
                fits, wanted = fits and 0 <= value <= 1, "in [0, 1]"
            else:
                fits, wanted = fits and value >= 0, "at least 0"
        if not fits:
            raise PipelineError(
                f"option `{option}` of `{term.name}` must be {wanted} (found {value!r})",
                where=WHERE,
            )


def _check_taps(term: LossTerm, found: Loss) -> None:
    given = f"(found {', '.join(term.taps) or 'none'})"
    if not found.taps:
        if term.taps:
            raise PipelineError(f"`{term.name}` takes no `taps` {given}", where=WHERE)
        if term.teacher is not None:
            raise PipelineError(
                f"`{term.name}` takes no `teacher` (found {term.teacher}): it compares no taps",
                where=WHERE,
            )
    elif found.target == "levels":
        if len(set(term.taps)) < max(2, len(term.taps)):
            raise PipelineError(
                f"`{term.name}` needs two or more different `taps`, shallow to deep {given}",
                where=WHERE,
            )
    elif len(term.taps) != 1:
        raise PipelineError(f"`{term.name}` needs exactly one of `taps` {given}", where=WHERE)
