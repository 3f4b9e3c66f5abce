"""Losses against closed forms, identities and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.distill.losses import LOSSES, attention_transfer, cross_entropy, find_loss, hint, kl
from pipeline.errors import PipelineError
from pipeline.params import LossTerm


def logits(seed: int, n: int = 5, classes: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, classes, generator=generator, dtype=torch.float64)


def test_kl_is_its_closed_form_for_two_classes() -> None:
    student, teacher, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0) * 2, 0.0]]), 2.0
    p = 3 / 4  # softmax(teacher / 2) = (3/4, 1/4), softmax(student / 2) = (1/2, 1/2)
    expected = t**2 * (p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5))
    assert kl(student, teacher, temperature=t).item() == pytest.approx(expected, rel=1e-6)


def test_kl_is_a_sum_over_classes_and_a_mean_over_the_batch() -> None:
    student, teacher = logits(0), logits(1)
    p, q = torch.softmax(teacher / 4, 1), torch.softmax(student / 4, 1)
    expected = 16 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(kl(student, teacher, temperature=4.0), expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 10.0])
def test_kl_is_zero_at_equality_and_blind_to_shifts(temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    assert kl(teacher, teacher, temperature=temperature).item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(
        kl(student + 5, teacher - 3, temperature=temperature),
        kl(student, teacher, temperature=temperature),
    )


def test_kl_at_high_temperature_tends_to_half_the_squared_centred_difference() -> None:
    """Hinton et al. 2015, section 2.1: T² KL -> 1/(2C) sum((z_s - z_t)²), logits centred."""
    student, teacher = logits(0), logits(1)
    student, teacher = student - student.mean(1, True), teacher - teacher.mean(1, True)
    limit = (student - teacher).pow(2).mean(1).mean() / 2
    torch.testing.assert_close(kl(student, teacher, temperature=1e4), limit, rtol=1e-3, atol=0)


def test_cross_entropy_of_uniform_logits_is_log_classes() -> None:
    value = cross_entropy(torch.zeros(3, 10), torch.tensor([0, 4, 9]))
    assert value.item() == pytest.approx(math.log(10))


def test_hint_is_the_mean_squared_difference() -> None:
    assert hint(torch.ones(2, 3, 4, 4), torch.full((2, 3, 4, 4), 3.0)).item() == 4.0


def test_attention_transfer_ignores_scale_and_channel_count() -> None:
    features = torch.rand(2, 6, 4, 4, dtype=torch.float64) + 0.1
    doubled = torch.cat([3 * features, 3 * features], dim=1)
    assert attention_transfer(doubled, features).item() == pytest.approx(0, abs=1e-12)


def test_attention_transfer_of_disjoint_maps_is_its_closed_form() -> None:
    one, other = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    one[0, 0, 0, 0] = other[0, 0, 1, 1] = 5.0
    assert attention_transfer(one, other).item() == pytest.approx(2 / 4)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    loss = LOSSES[name]
    if loss.taps:
        student = torch.rand(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
        target = torch.rand(2, 3, 3, 3, dtype=torch.float64)
    else:
        student = logits(0).requires_grad_()
        target = torch.tensor([0, 1, 2, 3, 4]) if loss.target == "labels" else logits(1)
    assert torch.autograd.gradcheck(lambda s: loss.function(s, target), (student,))


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ({"name": "kll"}, "did you mean `kl`?"),
        ({"name": "kl", "options": {"temp": 2}}, "no option `temp`; known are temperature"),
        ({"name": "hint"}, "`hint` needs `tap`"),
        ({"name": "kl", "tap": "late"}, "`kl` takes no `tap`"),
    ],
)
def test_a_wrong_term_is_refused(term: dict, said: str) -> None:
    with pytest.raises(PipelineError, match=said.replace("?", r"\?")):
        find_loss(LossTerm.model_validate({"weight": 1.0} | term))
