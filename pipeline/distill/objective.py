"""What a training step minimises: labels alone for a teacher, a weighted sum for a student."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.distill.losses import Loss, cross_entropy, find_loss
from pipeline.distill.taps import Adapter, Taps, match_size, tap_shapes
from pipeline.errors import PipelineError
from pipeline.networks.build import PixelsToLogits
from pipeline.params import LossTerm


class Supervised(nn.Module):
    """Cross entropy with smoothed labels on raw pixels."""

    def __init__(self, model: PixelsToLogits, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(self.model(pixels), labels, label_smoothing=self.label_smoothing)


class Distillation(nn.Module):
    """The weighted sum of `terms` between a student and a frozen teacher on the same pixels.

    Each network normalises the pixels its own way. Adapters are found by a dry run on
    `pixels` [N, H, W, C], train with the student, and are not part of it. Raises
    `PipelineError` before any training for a wrong loss, option, tap or class count.
    """

    def __init__(
        self,
        student: PixelsToLogits,
        teacher: PixelsToLogits,
        terms: tuple[LossTerm, ...],
        student_taps: dict[str, str],
        teacher_taps: dict[str, str],
        pixels: torch.Tensor,
    ) -> None:
        super().__init__()
        self.model = student
        # In a tuple, so that it is no submodule: neither trained, counted nor saved.
        self._teacher = (teacher.eval().requires_grad_(False),)
        self.terms: list[tuple[LossTerm, Loss]] = [(term, find_loss(term)) for term in terms]
        used = {term.tap for term in terms if term.tap}
        for whose, taps in (("the student", student_taps), ("the teacher", teacher_taps)):
            for name in sorted(used - taps.keys()):
                raise PipelineError(f"{whose} has no tap `{name}`", fix="add it to its `taps`")
        self.taps = [
            Taps(model.network, {name: taps[name] for name in sorted(used)}, whose)
            for model, taps, whose in (
                (student, student_taps, "the student"),
                (teacher, teacher_taps, "the teacher"),
            )
        ]
        shapes = [
            tap_shapes(model, taps, pixels[:1])
            for model, taps in zip((student, teacher), self.taps, strict=True)
        ]
        self.adapters = nn.ModuleDict(
            {
                str(index): Adapter(shapes[0][term.tap][1], shapes[1][term.tap][1])
                for index, (term, loss) in enumerate(self.terms)
                if loss.target == "features" and term.tap
            }
        )

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            teacher_logits = self._teacher[0](pixels)
        logits = self.model(pixels)
        total = torch.zeros((), device=logits.device)
        for index, (term, loss) in enumerate(self.terms):
            if loss.target == "labels":
                value = loss.function(logits, labels, **term.options)
            elif loss.target == "logits":
                value = loss.function(logits, teacher_logits, **term.options)
            else:
                value = self._feature_loss(index, term, loss)
            total = total + term.weight * value
        return total

    def _feature_loss(self, index: int, term: LossTerm, loss: Loss) -> torch.Tensor:
        assert term.tap is not None  # find_loss has checked it
        student, teacher = (taps.features[term.tap] for taps in self.taps)
        student, teacher = match_size(student, teacher)
        if loss.target == "features":
            student = self.adapters[str(index)](student)
        return loss.function(student, teacher, **term.options)
