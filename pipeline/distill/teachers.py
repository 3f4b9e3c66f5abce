"""One teacher or several: each with its own normalisation and size, their logits combined."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from pipeline.contracts import CARD, TEACHERS, Manifest, ModelCard
from pipeline.errors import PipelineError
from pipeline.files import sha256
from pipeline.networks.build import WEIGHTS, PixelsToLogits, load_pixels_to_logits


def teacher_folder(name: str) -> Path:
    return TEACHERS / name


def load_teacher(name: str, manifest: Manifest) -> PixelsToLogits:
    """A frozen teacher in eval mode; `PipelineError` where it knows other classes."""
    model, card = load_pixels_to_logits(teacher_folder(name))
    check_classes(card, manifest, teacher_folder(name) / CARD)
    return model.requires_grad_(False)


def check_classes(card: ModelCard, manifest: Manifest, where: Path) -> None:
    if card.classes != manifest.classes:
        raise PipelineError(
            f"made for the classes {', '.join(card.classes)}; "
            f"the data has {', '.join(manifest.classes)}",
            where=str(where),
            fix="use a checkpoint for these classes, train a teacher (`source: train`), "
            "or fine-tune timm's weights, whose head is made anew (`source: pretrained`)",
        )


def teacher_digest(name: str) -> str:
    """SHA-256 of all that decides a teacher's logits: weights, architecture, normalisation."""
    folder = teacher_folder(name)
    if not (folder / WEIGHTS).exists():
        raise PipelineError(
            f"the teacher `{name}` is not there", where=str(folder), fix="run `dvc repro`"
        )
    card = ModelCard.read(folder / CARD).model_dump_json()
    return hashlib.sha256(f"{sha256(folder / WEIGHTS)} {card}".encode()).hexdigest()


def combine(
    logits: torch.Tensor, labels: torch.Tensor, how: str, weights: Sequence[float]
) -> torch.Tensor:
    """One teacher's logits [N, C] out of T teachers' [T, N, C].

    mean: the mean weighted by `weights` [T], whose softmax is the weighted geometric mean of
    the teachers' probabilities. best: for each sample the logits of the teacher with the
    smallest cross entropy with its label (int64 [N], or probabilities [N, C]).
    """
    if len(logits) == 1:
        return logits[0]
    if how == "mean":
        share = torch.tensor(weights, dtype=logits.dtype, device=logits.device)
        return (logits * (share / share.sum())[:, None, None]).sum(0)
    errors = torch.stack([F.cross_entropy(one, labels, reduction="none") for one in logits])
    best: torch.Tensor = logits[errors.argmin(0), torch.arange(logits.shape[1])]
    return best
