"""What a student learns from beside clean views: attacked ones (RSLAD), or mixes (AugMix).

Every view of an image has the same target, the teachers' logits of the clean one, so that recorded
logits serve.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.distill.losses.logits import kl
from pipeline.distill.params import Augmix, LossTerm, Robust, Rslad
from pipeline.networks.attacks import pgd
from pipeline.networks.pixels import PixelsToLogits

WHERE = "distill.robust"


def check_robust(robust: Robust | None, terms: tuple[LossTerm, ...], *, on_logits: bool) -> None:
    """Raise `PipelineError` for what cannot be learnt with these losses.

    Args:
        robust: as in params.yaml.
        terms: the losses.
        on_logits: whether any of them compares with the teachers' logits.
    """
    if isinstance(robust, Rslad) and not on_logits:
        names = ", ".join(term.name for term in terms)
        raise PipelineError(
            f"RSLAD attacks what the teachers answer, and no loss compares with it (found {names})",
            where=WHERE,
            fix="add a loss on logits: `{ name: kl, weight: 1.0, options: { temperature: 1.0 } }`",
        )


def view_shares(robust: Robust | None) -> tuple[float, ...]:
    """The share of a loss that each view of an image has: first the clean one. Their sum is 1."""
    if robust is None:
        return (1.0,)
    changed = robust.mixes if isinstance(robust, Augmix) else 1
    return (1 - robust.share, *(robust.share / changed,) * changed)


def attacked(
    model: PixelsToLogits, pixels: torch.Tensor, taught: torch.Tensor, settings: Rslad
) -> torch.Tensor:
    """Images that PGD changed so that the student answers otherwise than the teachers.

    It maximises KL(softmax(`taught`) || softmax(`model`(x'))) from a random start, as RSLAD's inner
    step does (Zi et al. 2021, arXiv 2108.07969; the order of the arguments is that of the authors'
    code). The start is uniform in the whole cube, where theirs is noise of 0.001.

    The model is in eval mode meanwhile, as in their code: dropout is off, and batch norm takes the
    running statistics and leaves them alone. Under int8's rounding the attack is on the rounded
    model, by the gradients that it learns with. The start comes from torch's global generator.

    Args:
        model: the student.
        pixels: clean images uint8 [N, H, W, C].
        taught: the teachers' logits of them, float32 [N, classes].
        settings: of the attack.

    Returns:
        float32 [N, H, W, C] in [0, 255], without gradients.
    """
    start = torch.empty(pixels.shape, device=pixels.device)
    start.uniform_(-settings.epsilon, settings.epsilon)

    def apart(changed: torch.Tensor) -> torch.Tensor:
        # A sum over images: a mean would make gradients N times as small, too small for float16.
        return kl(model(changed), taught, temperature=1.0) * len(changed)

    with _evaluating(model):
        return pgd(
            apart, pixels, epsilon=settings.epsilon, steps=settings.steps,
            step_size=settings.step_size, start=start,
        )  # fmt: skip


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within this a model is in eval mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:  # not all of them: frozen batch norms stay in eval mode
            module.training = True


def jensen_shannon(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Jensen-Shannon divergence between the answers to several views of the same images.

    1/K sum_k KL(p_k || m) of p_k = softmax(z_k) and their mean m; a mean over N. It is 0 where all
    answers are equal, and log K at most. Its gradient reaches every view (arXiv 1912.02781).

    Args:
        logits: K tensors [N, C], of any float type.
    """
    log_p = torch.stack([one.float().log_softmax(1) for one in logits])
    log_mean = log_p.logsumexp(0) - math.log(len(logits))
    return (log_p.exp() * (log_p - log_mean)).sum(2).mean()
