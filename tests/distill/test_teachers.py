"""Several teachers as one."""

from __future__ import annotations

import pytest
import torch

from pipeline.distill.teachers import combine

LOGITS = torch.tensor([[[4.0, 0.0], [4.0, 0.0]], [[0.0, 2.0], [0.0, 2.0]]])  # [T, N, C]
LABELS = torch.tensor([0, 1])


def test_one_teacher_is_not_changed() -> None:
    assert torch.equal(combine(LOGITS[:1], LABELS, "mean", [7.0]), LOGITS[0])


def test_the_mean_is_weighted() -> None:
    mean = combine(LOGITS, LABELS, "mean", [3.0, 1.0])
    torch.testing.assert_close(mean, torch.tensor([[3.0, 0.5], [3.0, 0.5]]))


def test_the_mean_of_logits_is_the_geometric_mean_of_probabilities() -> None:
    mean = combine(LOGITS, LABELS, "mean", [1.0, 1.0]).softmax(1)
    product = LOGITS.softmax(2).prod(0).sqrt()
    torch.testing.assert_close(mean, product / product.sum(1, keepdim=True))


@pytest.mark.parametrize("labels", [LABELS, torch.eye(2)], ids=["hard", "soft"])
def test_the_best_is_the_one_that_knows_each_label(labels: torch.Tensor) -> None:
    best = combine(LOGITS, labels, "best", [1.0, 1.0])
    assert torch.equal(best, torch.stack([LOGITS[0, 0], LOGITS[1, 1]]))
