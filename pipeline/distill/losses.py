"""Distillation losses: pure functions and the registry that params.yaml names them by.

Shapes: N samples, C classes, F channels, H x W positions. Every loss is a mean over the
batch and zero when the student equals the teacher (cross entropy apart, which knows none).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from pipeline.errors import PipelineError
from pipeline.params import LossTerm

LossFunction = Callable[..., torch.Tensor]
Target = Literal["labels", "logits", "features", "maps"]


@dataclass(frozen=True)
class Loss:
    """A registered loss and what it compares.

    labels: student logits [N, C] with labels int64 [N]. logits: both logits [N, C].
    features: both [N, F, H, W], equal in F, H and W (an adapter matches them). maps: both
    [N, F, H, W], equal in H and W only.
    """

    function: LossFunction
    target: Target

    @property
    def taps(self) -> bool:
        return self.target in ("features", "maps")


LOSSES: dict[str, Loss] = {}


def register(name: str, target: Target) -> Callable[[LossFunction], LossFunction]:
    """Make a pure function known to `distill.losses`; its keyword arguments are `options`."""

    def add(function: LossFunction) -> LossFunction:
        LOSSES[name] = Loss(function, target)
        return function

    return add


def find_loss(term: LossTerm) -> Loss:
    """The loss that a term names; `PipelineError` for a wrong name, option or tap."""
    if term.name not in LOSSES:
        close = difflib.get_close_matches(term.name, LOSSES, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known are {', '.join(LOSSES)}"
        raise PipelineError(f"there is no loss `{term.name}`; {hint}", where="distill.losses")
    loss = LOSSES[term.name]
    known = [
        name
        for name, parameter in inspect.signature(loss.function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for option in term.options:
        if option not in known:
            raise PipelineError(
                f"`{term.name}` has no option `{option}`; known are {', '.join(known) or 'none'}",
                where="distill.losses",
            )
    if loss.taps != (term.tap is not None):
        raise PipelineError(
            f"`{term.name}` {'needs' if loss.taps else 'takes no'} `tap`", where="distill.losses"
        )
    return loss


@register("cross_entropy", "labels")
def cross_entropy(
    student: torch.Tensor, labels: torch.Tensor, *, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross entropy of the softmax of `student` with the labels. Range [0, inf)."""
    return F.cross_entropy(student, labels, label_smoothing=label_smoothing)


@register("kl", "logits")
def kl(student: torch.Tensor, teacher: torch.Tensor, *, temperature: float = 4.0) -> torch.Tensor:
    """T² KL(softmax(teacher / T) ‖ softmax(student / T)), a sum over C, a mean over N.

    Hinton, Vinyals, Dean 2015, arXiv 1503.02531. T² keeps the gradient's size when T
    changes. Range [0, inf).
    """
    divergence = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",  # `mean` would divide by C as well
        log_target=True,
    )
    return divergence * temperature**2


@register("hint", "features")
def hint(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of adapted student features and teacher features.

    FitNets, arXiv 1412.6550. Range [0, inf).
    """
    return F.mse_loss(student, teacher)


@register("attention_transfer", "maps")
def attention_transfer(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of L2-normalised attention maps mean_F(f²), [N, H·W].

    Zagoruyko, Komodakis 2017, arXiv 1612.03928. Range [0, 4 / (H·W)].
    """

    def attention(features: torch.Tensor) -> torch.Tensor:
        return F.normalize(features.pow(2).mean(dim=1).flatten(1), dim=1)

    return F.mse_loss(attention(student), attention(teacher))
