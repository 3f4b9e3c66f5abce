"""The loss of a student: a weighted sum of terms that compare it with labels and teachers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.distill.adapters import Adapter, ReviewAdapter, match_size
from pipeline.distill.losses.registry import Loss, find_loss
from pipeline.distill.losses.schedule import weight_factor
from pipeline.distill.params import Augmix, LossTerm, Robust, Rslad
from pipeline.distill.robust import attacked, check_robust, jensen_shannon, view_shares
from pipeline.distill.taps import Taps, tap_shapes
from pipeline.distill.teachers import combine
from pipeline.networks.pixels import PixelsToLogits
from pipeline.training.balance import adjusted
from pipeline.training.devices import gather
from pipeline.training.few_labels import on_labelled
from pipeline.training.objective import Objective, Terms
from pipeline.training.params import Teachers

CONSISTENCY = "jensen_shannon"
"""The term that AugMix adds."""


class Distillation(Objective):
    """The weighted sum of `terms` between a student and frozen teachers on the same pixels.

    Every network normalises the pixels by itself. The combined logits of all enabled teachers come
    from a recording where `forward` gets one, else from the teachers; features always come from
    the teachers. Adapters are trained with the student and are not part of it.

    With `robust`, the student also sees changed views of the images: attacked ones, which are made
    here, or mixes, which `forward` gets. One forward pass computes all views, so that batch norm
    sees all kinds. A loss on labels or logits is then the weighted mean of its values for each
    view, all with the labels and the teachers' logits of the clean one; a loss on features compares
    the clean views.

    Args:
        student: the model that is trained.
        teachers: those that run in every step, by name.
        terms: the losses.
        student_taps: module path by tap name.
        settings: of all teachers.
        pixels: uint8 [N, H, W, C]; a forward pass on the first image gives the adapters' shapes.
        label_smoothing: of `cross_entropy`, in [0, 1).
        log_prior: added to the student's logits in `cross_entropy`, [C]; see `log_prior`.
        labelled_share: of the samples of an epoch; terms that need labels use those samples only.
        accumulate: parts in which a batch is computed.
        robust: the changed views, if there are any.

    Raises:
        PipelineError: for a wrong loss, option, tap or teacher.
    """

    log_prior: torch.Tensor | None

    def __init__(
        self,
        student: PixelsToLogits,
        teachers: Mapping[str, PixelsToLogits],
        terms: tuple[LossTerm, ...],
        student_taps: dict[str, str],
        settings: Teachers,
        pixels: torch.Tensor,
        label_smoothing: float = 0.0,
        log_prior: torch.Tensor | None = None,
        labelled_share: float = 1.0,
        accumulate: int = 1,
        robust: Robust | None = None,
    ) -> None:
        super().__init__()
        self.model = student
        self.robust, self._shares = robust, view_shares(robust)
        self.register_buffer("log_prior", log_prior, persistent=False)
        self.label_smoothing = label_smoothing
        self.labelled_share = labelled_share
        self.settings = settings
        if labelled_share < 1:
            _check_labels_are_rare(terms, settings)
        if accumulate > 1:
            _check_batches_may_be_parted(terms)
        self.terms = [(key, term, find_loss(term)) for key, term in _keys(terms).items()]
        self._needs_logits = needs_logits(terms)
        check_robust(robust, terms, on_logits=self._needs_logits)
        # A mapping, as submodules would be trained, counted and saved.
        self._teachers = {
            name: teacher.eval().requires_grad_(False) for name, teacher in teachers.items()
        }
        if all(loss.taps for _, _, loss in self.terms):
            raise PipelineError(
                "no term trains the classifier: all of them compare features",
                where="distill.losses",
                fix="add `cross_entropy` or a loss on logits",
            )
        self._student_taps = _taps(student, student_taps, terms, "the student")
        self._teacher_taps = {}
        for name in needed_for_features(terms, settings):
            used = tuple(term for term in terms if term.taps and _whose(term, settings) == name)
            paths = settings.zoo[name].network.taps
            self._teacher_taps[name] = _taps(
                self._teachers[name], paths, used, f"the teacher `{name}`"
            )
        self.adapters = self._find_adapters(pixels[:1])

    def forward(
        self,
        pixels: torch.Tensor,
        labels: torch.Tensor,
        recorded: torch.Tensor | None = None,
        progress: float | torch.Tensor = 0.0,
    ) -> Terms:
        clean = pixels[: len(labels)]
        taught = self._teach(clean, labels, recorded)
        if isinstance(self.robust, Rslad):
            assert taught is not None
            changed = attacked(self.model, clean, taught, self.robust)
            pixels = torch.cat([clean, changed])
        logits = self.model(pixels)
        views = (logits,) if self.robust is None else logits.split(len(labels))
        found: Terms = {}
        for key, term, loss in self.terms:
            weight = term.weight * weight_factor(term.schedule, term.span, progress)
            if loss.taps:
                value = self._of_features(key, term, loss, len(labels))
            else:
                value = torch.zeros((), device=labels.device)
                for share, view in zip(self._shares, views, strict=True):
                    value = value + share * self._of_logits(term, loss, view, taught, labels)
            found[key] = weight * value
        if isinstance(self.robust, Augmix):
            consistency = self.robust.consistency * jensen_shannon(views)
            found[CONSISTENCY] = found.get(CONSISTENCY, 0) + consistency
        return found

    @torch.no_grad()
    def _teach(
        self, pixels: torch.Tensor, labels: torch.Tensor, recorded: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Combined logits [N, C] of the teachers; running them also fills their taps."""
        # In float32, as for a recording, whatever precision the student is trained in.
        with torch.autocast(pixels.device.type, enabled=False):
            logits = {
                name: teacher(pixels)
                for name, teacher in self._teachers.items()
                if recorded is None or name in self._teacher_taps
            }
        if not self._needs_logits:
            return None
        if recorded is None:
            recorded = torch.stack([logits[name].float() for name in self.settings.enabled])
        shares = [self.settings.weights.get(name, 1.0) for name in self.settings.enabled]
        return combine(recorded, labels, self.settings.combine, shares)

    def _of_logits(
        self,
        term: LossTerm,
        loss: Loss,
        logits: torch.Tensor,
        taught: torch.Tensor | None,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """A loss on labels or logits, for one view of every image."""
        options: dict[str, bool | float] = dict(term.options)
        if loss.target == "labels":
            options.setdefault("label_smoothing", self.label_smoothing)
            logits = adjusted(logits, self.log_prior)
            return on_labelled(partial(loss, **options), labels, self.labelled_share, logits)
        assert taught is not None
        if loss.needs_labels and not loss.batchwise:
            function = partial(loss, **options)
            return on_labelled(function, labels, self.labelled_share, logits, taught)
        tensors = [logits, taught, *([labels] if loss.needs_labels else [])]
        return loss(*map(gather, tensors) if loss.batchwise else tensors, **options)

    def _of_features(self, key: str, term: LossTerm, loss: Loss, images: int) -> torch.Tensor:
        """A loss on what the taps kept of the last forward pass, for its first `images`."""
        options, whose = dict(term.options), _whose(term, self.settings)
        student = [self._student_taps.features[tap] for tap in term.taps]
        if self.robust is not None:
            student = [features[:images] for features in student]
        teacher = [self._teacher_taps[whose].features[tap] for tap in term.taps]
        if loss.target == "levels":
            return loss(self.adapters[key](student), teacher, **options)
        one, other = student[0], teacher[0]
        if loss.target in ("features", "maps"):
            one, other = match_size(one, other)
        if loss.target == "features":
            one = self.adapters[key](one)
        if loss.batchwise:
            one, other = gather(one), gather(other)
        return loss(one, other, **options)

    def _find_adapters(self, pixels: torch.Tensor) -> nn.ModuleDict:
        found: dict[str, nn.Module] = {}
        student = tap_shapes(self.model, self._student_taps, pixels)
        teacher = {
            name: tap_shapes(self._teachers[name], taps, pixels)
            for name, taps in self._teacher_taps.items()
        }
        for key, term, loss in self.terms:
            if not loss.taps:
                continue
            ours = [student[tap] for tap in term.taps]
            theirs = [teacher[_whose(term, self.settings)][tap] for tap in term.taps]
            if loss.target == "features":
                found[key] = Adapter(ours[0][1], theirs[0][1])
            elif loss.target == "maps" and min(math.prod(s[2:]) for s in (*ours, *theirs)) == 1:
                raise PipelineError(
                    f"`{term.name}` compares positions, but the tap `{term.taps[0]}` has "
                    f"one position: {_size(ours[0])} in the student, {_size(theirs[0])} in the "
                    "teacher",
                    where="distill.losses",
                    fix="choose an earlier tap: `python -m pipeline taps` shows their sizes",
                )
            elif loss.target == "levels":
                found[key] = ReviewAdapter(ours, theirs)
        return nn.ModuleDict(found)


def _check_labels_are_rare(terms: tuple[LossTerm, ...], settings: Teachers) -> None:
    """Refuse what needs the label of every image."""
    needing = [
        term.name for term in terms if (its := find_loss(term)).needs_labels and its.batchwise
    ]
    if settings.combine == "best" and len(settings.enabled) > 1:
        needing.append("teachers.combine: best")
    if needing:
        raise PipelineError(
            f"`{needing[0]}` needs the label of every image, and some have none",
            where="distill.losses" if "combine" not in needing[0] else "params.yaml",
            fix="choose another, or set `views.unlabelled: 0`",
        )


def _check_batches_may_be_parted(terms: tuple[LossTerm, ...]) -> None:
    """Refuse what would compare the samples of a part alone."""
    for term in terms:
        if find_loss(term).batchwise:
            raise PipelineError(
                f"`{term.name}` compares the samples of a batch, and `accumulate` splits batches",
                where="distill.losses",
                fix="set `distill.training.accumulate: 1`, or choose another loss",
            )


def _size(shape: torch.Size) -> str:
    return " x ".join(map(str, shape[1:]))


def needs_logits(terms: tuple[LossTerm, ...]) -> bool:
    """Whether any term compares with the teachers' logits."""
    return any(find_loss(term).target == "logits" for term in terms)


def needed_for_features(terms: tuple[LossTerm, ...], settings: Teachers) -> tuple[str, ...]:
    """The teachers whose features a term compares: they run in every step, recorded or not."""
    return tuple(dict.fromkeys(_whose(term, settings) for term in terms if find_loss(term).taps))


def _whose(term: LossTerm, settings: Teachers) -> str:
    return term.teacher or settings.enabled[0]


def _keys(terms: tuple[LossTerm, ...]) -> dict[str, LossTerm]:
    """Terms by the name of the loss; the second of the same name is `NAME_2`."""
    found: dict[str, LossTerm] = {}
    for term in terms:
        same = sum(other.name == term.name for other in found.values())
        found[f"{term.name}_{same + 1}" if same else term.name] = term
    return found


def _taps(
    model: PixelsToLogits, paths: dict[str, str], terms: tuple[LossTerm, ...], whose: str
) -> Taps:
    used = sorted({tap for term in terms for tap in term.taps})
    for name in used:
        if name not in paths:
            raise PipelineError(
                f"{whose} has no tap `{name}`; it has {', '.join(paths) or 'none'}",
                where="distill.losses",
                fix="add it to its `taps`",
            )
    return Taps(model.network, {name: paths[name] for name in used}, whose)
