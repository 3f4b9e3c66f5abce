"""Losses against closed forms, identities, slow references and finite differences.

What every loss promises is tested on every registered one, so a new loss is tested, too.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.core.errors import PipelineError
from pipeline.distill.losses.features import attention_transfer, cosine, cosine_angle, hint, review
from pipeline.distill.losses.logits import cross_entropy, dist, dkd, kl, margin, mse, symmetric_kl
from pipeline.distill.losses.registry import Loss, find_loss
from pipeline.distill.losses.relations import rkd, similarity_preserving
from pipeline.distill.losses.schedule import weight_factor
from pipeline.distill.params import LossTerm
from tests.distill.conftest import LOSSES

COMPARING = [name for name, loss in LOSSES.items() if loss.target != "labels"]
HALVES = [torch.float16, torch.bfloat16]


def logits(seed: int, n: int = 5, classes: int = 7) -> torch.Tensor:
    return 3 * draw(seed, n, classes)


def features(seed: int, n: int = 4, size: int = 5) -> torch.Tensor:
    return draw(seed, n, 3, size, size)


def draw(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def sides(loss: Loss, n: int = 4) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """A student's and a teacher's tensors for `loss`: two levels, or one tensor each."""
    if not loss.taps:
        return (logits(0, n),), (logits(1, n),)
    if loss.target == "levels":
        return (features(0, n), features(2, n, 2)), (features(1, n), features(3, n, 2))
    return (features(0, n),), (features(1, n),)


def labels(n: int, classes: int = 7) -> torch.Tensor:
    return torch.arange(n) % classes


def value(
    loss: Loss,
    student: tuple[torch.Tensor, ...],
    teacher: tuple[torch.Tensor, ...],
    **options: Any,
) -> torch.Tensor:
    if loss.target == "levels":
        return loss(student, teacher, **options)
    truth = labels(len(student[0]))
    if loss.target == "labels":
        return loss(student[0], truth, **options)
    more = (truth,) if loss.needs_labels else ()
    return loss(student[0], teacher[0], *more, **options)


# What every loss promises


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    loss = LOSSES[name]
    student, teacher = sides(loss, n=3)
    student = tuple(tensor.requires_grad_() for tensor in student)
    assert torch.autograd.gradcheck(lambda *s: value(loss, s, teacher), student)


@pytest.mark.parametrize("name", ["kl", "symmetric_kl", "dkd"])
def test_gradients_of_standardised_logits_agree_with_finite_differences(name: str) -> None:
    loss = LOSSES[name]
    student, teacher = (logits(0).requires_grad_(),), (logits(1),)
    assert torch.autograd.gradcheck(
        lambda *s: value(loss, s, teacher, standardise=True), student, eps=1e-5
    )


@pytest.mark.parametrize("name", COMPARING)
def test_every_loss_is_least_when_the_student_equals_the_teacher(name: str) -> None:
    loss = LOSSES[name]
    student, teacher = sides(loss)
    at_rest = value(loss, teacher, teacher).item()
    assert at_rest == pytest.approx(2.0 if name == "margin" else 0.0, abs=1e-12)
    assert value(loss, student, teacher).item() > at_rest + 1e-3


@pytest.mark.parametrize("name", COMPARING)
def test_a_loss_is_a_mean_over_samples_unless_it_is_batchwise(name: str) -> None:
    loss = LOSSES[name]
    student, teacher = sides(loss, n=8)
    whole = value(loss, student, teacher).item()
    parts = []
    for part in (slice(0, 4), slice(4, 8)):
        s, t = tuple(x[part] for x in student), tuple(x[part] for x in teacher)
        if loss.needs_labels:
            parts.append(loss(s[0], t[0], labels(8)[part]).item())
        else:
            parts.append(value(loss, s, t).item())
    assert (whole == pytest.approx(np.mean(parts), rel=1e-9)) != loss.batchwise


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["equal", "zero", "constant"])
def test_gradients_are_small_where_a_loss_has_no_direction(name: str, kind: str) -> None:
    """A student that equals its teacher, says nothing, or says the same of everything."""
    loss = LOSSES[name]
    teacher = tuple(tensor.float() for tensor in sides(loss)[1])
    fill = {"equal": None, "zero": 0.0, "constant": 0.1}[kind]
    student = tuple(
        (t.clone() if fill is None else torch.full_like(t, fill)).requires_grad_() for t in teacher
    )
    found = value(loss, student, teacher)
    found.backward()
    assert found.isfinite()
    assert all(tensor.grad is not None and tensor.grad.norm() < 100 for tensor in student)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("largest", [0.1, 1.0, 1e4])
def test_float32_gives_values_and_gradients_of_float64(name: str, largest: float) -> None:
    loss = LOSSES[name]
    found = []
    for dtype in (torch.float32, torch.float64):
        student, teacher = (
            tuple((x * (largest / x.abs().max())).float().to(dtype) for x in side)
            for side in sides(loss)
        )
        student = tuple(tensor.requires_grad_() for tensor in student)
        result = value(loss, student, teacher)
        found.append((result.double(), *(x.double() for x in torch.autograd.grad(result, student))))
    for single, exact in zip(*found, strict=True):
        assert (single - exact).norm() <= 1e-3 * exact.norm() + 1e-9


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("largest", [1.0, 6e4])
def test_half_precision_is_computed_in_float32(
    name: str, dtype: torch.dtype, largest: float
) -> None:
    loss = LOSSES[name]
    student, teacher = (
        tuple((x * (largest / x.abs().max())).to(dtype) for x in side) for side in sides(loss)
    )
    found = value(loss, student, teacher)
    exact = value(loss, tuple(x.double() for x in student), tuple(x.double() for x in teacher))
    assert found.dtype == torch.float32 and found.shape == ()
    assert found.item() == pytest.approx(exact.item(), rel=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name: str) -> None:
    loss = LOSSES[name]
    student, teacher = (tuple(x.float() for x in side) for side in sides(loss))
    with torch.autocast("cpu", torch.bfloat16):
        inside = value(loss, student, teacher)
    assert inside.item() == value(loss, student, teacher).item()


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if not loss.taps])
def test_two_classes_are_enough(name: str) -> None:
    student, teacher = logits(0, classes=2).requires_grad_(), logits(1, classes=2)
    loss, truth = LOSSES[name], labels(5, classes=2)
    other = (truth,) if loss.target == "labels" else (teacher, truth)[: 1 + loss.needs_labels]
    found = loss(student, *other)
    found.backward()
    assert found.isfinite() and student.grad is not None and student.grad.isfinite().all()


# Logits


def test_cross_entropy_of_uniform_logits_is_log_classes() -> None:
    found = cross_entropy(torch.zeros(3, 10), torch.tensor([0, 4, 9]))
    assert found.item() == pytest.approx(math.log(10))


def test_cross_entropy_of_mixed_labels_is_the_mix_of_cross_entropies() -> None:
    one, other, share = labels(5), labels(5).flip(0), 0.3
    mixed = share * F.one_hot(one, 7) + (1 - share) * F.one_hot(other, 7)
    expected = share * cross_entropy(logits(0), one) + (1 - share) * cross_entropy(logits(0), other)
    torch.testing.assert_close(cross_entropy(logits(0), mixed), expected)


def test_smoothed_labels_are_labels_mixed_with_the_uniform_distribution() -> None:
    mixed = 0.9 * F.one_hot(labels(5), 7) + 0.1 / 7
    found = cross_entropy(logits(0), labels(5), label_smoothing=0.1)
    torch.testing.assert_close(found, cross_entropy(logits(0), mixed))


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
@pytest.mark.parametrize("name", ["kl", "symmetric_kl", "dkd", "dist"])
def test_losses_on_probabilities_are_blind_to_shifts(name: str, temperature: float) -> None:
    loss, student, teacher = LOSSES[name], logits(0), logits(1)
    shifted = value(loss, (student + 5,), (teacher - 3,), temperature=temperature)
    torch.testing.assert_close(
        shifted, value(loss, (student,), (teacher,), temperature=temperature)
    )


def test_kl_at_high_temperature_tends_to_half_the_mse_of_centred_logits() -> None:
    """Hinton et al. 2015, section 2.1: T² KL -> 1/(2C) sum((z_s - z_t)²), logits centred."""
    student, teacher = logits(0), logits(1)
    limit = mse(student - student.mean(1, True), teacher - teacher.mean(1, True)) / 2
    torch.testing.assert_close(kl(student, teacher, temperature=1e4), limit, rtol=1e-3, atol=0)


def test_symmetric_kl_is_the_weighted_sum_of_both_directions() -> None:
    s, t = logits(0), logits(1)
    torch.testing.assert_close(symmetric_kl(s, t, balance=0.0), kl(s, t))
    torch.testing.assert_close(symmetric_kl(s, t, balance=0.3), kl(s, t) + 0.3 * kl(t, s))


def test_jeffreys_divergence_is_symmetric_and_its_closed_form() -> None:
    s, t = logits(0), logits(1)
    found = symmetric_kl(s, t, balance=1.0, temperature=2.0)
    torch.testing.assert_close(found, symmetric_kl(t, s, balance=1.0, temperature=2.0))
    p, q = torch.softmax(t / 2, 1), torch.softmax(s / 2, 1)
    torch.testing.assert_close(found, 4 * ((p - q) * (p.log() - q.log())).sum(1).mean())


@pytest.mark.parametrize("name", ["kl", "symmetric_kl", "dkd"])
def test_standardised_logits_are_blind_to_scale_and_shift(name: str) -> None:
    loss, student, teacher = LOSSES[name], logits(0), logits(1)
    found = value(loss, (0.2 * student - 1,), (30 * teacher + 7,), standardise=True)
    expected = value(loss, (student,), (teacher,), standardise=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_standardised_kl_is_kl_of_z_scores() -> None:
    def score(z: torch.Tensor) -> torch.Tensor:
        x = z.numpy()
        return torch.from_numpy((x - x.mean(1, keepdims=True)) / x.std(1, ddof=1, keepdims=True))

    found = kl(logits(0), logits(1), temperature=2.0, standardise=True)
    expected = kl(score(logits(0)), score(logits(1)), temperature=2.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("classes", [3, 10, 11, 100, 1000])
@pytest.mark.parametrize(("name", "options"), [("kl", {"standardise": True}), ("dist", {})])
def test_rounding_is_no_direction(name: str, options: dict[str, bool], classes: int) -> None:
    """The mean of equal logits differs from them in the last bit, for some class counts."""
    student = torch.full((4, classes), 0.1, requires_grad=True)
    teacher = logits(1, 4, classes).float()
    found = value(LOSSES[name], (student,), (teacher,), **options)
    found.backward()
    assert found.isfinite() and student.grad is not None and student.grad.norm() < 100


def test_mse_is_a_mean_over_samples_and_classes() -> None:
    assert mse(torch.zeros(2, 5), torch.full((2, 5), 3.0)).item() == 9.0


@pytest.mark.parametrize(
    ("difference", "balance", "expected"),
    [
        (0.0, 1.0, 1.0),
        (0.3, 1.0, 1.0),
        (2.0, 1.0, 2.5),
        (-2.0, 1.0, 2.5),
        (0.0, 0.2, 0.6),
        (2.0, 0.2, 2.5),
        (-2.0, 0.2, 0.5),
        (-0.5, 0.2, 0.2),
    ],
)
def test_margin_is_its_closed_form(difference: float, balance: float, expected: float) -> None:
    """By the teacher's excess, with δ = 1/2: 2δ within a balanced margin, a slope per side."""
    student, teacher = torch.zeros(2, 3), torch.full((2, 3), difference)
    found = margin(student, teacher, delta=0.5, balance=balance)
    assert found.item() == pytest.approx(expected)


def test_a_balanced_margin_is_an_l1_distance_beyond_the_margin() -> None:
    distance = (logits(0) - logits(1)).abs()
    expected = 2 * 1.5 + (distance - 1.5).clamp(min=0).mean()
    torch.testing.assert_close(margin(logits(0), logits(1), delta=1.5), expected)


def test_dkd_is_the_papers_two_parts() -> None:
    student, teacher, truth, t = logits(0), logits(1), labels(5), 4.0
    expected = 0.0
    for i, target in enumerate(truth.tolist()):
        p, q = (torch.softmax(z[i] / t, 0).numpy() for z in (teacher, student))
        others = [c for c in range(7) if c != target]
        b, d = [p[target], p[others].sum()], [q[target], q[others].sum()]
        expected += 0.7 * sum(x * math.log(x / y) for x, y in zip(b, d, strict=True))
        rest = zip(p[others] / b[1], q[others] / d[1], strict=True)
        expected += 3.0 * sum(x * math.log(x / y) for x, y in rest)
    found = dkd(student, teacher, truth, alpha=0.7, beta=3.0, temperature=t)
    assert found.item() == pytest.approx(t**2 * expected / 5)


def test_dkd_recovers_kl_when_the_other_classes_count_what_the_teacher_leaves_them() -> None:
    """Zhao et al. 2022, equation 7: KD = TCKD + (1 - p_t[target]) NCKD."""
    for i in range(5):
        student, teacher, truth = logits(0)[i : i + 1], logits(1)[i : i + 1], labels(5)[i : i + 1]
        beta = 1 - torch.softmax(teacher / 4, 1)[0, truth].item()
        found = dkd(student, teacher, truth, alpha=1.0, beta=beta, temperature=4.0)
        torch.testing.assert_close(found, kl(student, teacher, temperature=4.0))


def test_dkd_of_two_classes_is_kl_whatever_beta() -> None:
    student, teacher = logits(0, classes=2), logits(1, classes=2)
    found = dkd(student, teacher, labels(5, classes=2), beta=100.0)
    torch.testing.assert_close(found, kl(student, teacher))


def test_dkd_takes_the_largest_of_mixed_labels_as_the_target() -> None:
    one, other = labels(5), labels(5).flip(0)
    mixed = 0.6 * F.one_hot(one, 7).double() + 0.4 * F.one_hot(other, 7)
    student, teacher = logits(0), logits(1)
    assert dkd(student, teacher, mixed).item() == dkd(student, teacher, one).item()


def test_dist_agrees_with_numpys_correlations() -> None:
    student, teacher, t = logits(0), logits(1), 2.0
    p, q = (torch.softmax(z / t, 1).numpy() for z in (student, teacher))
    rows = np.mean([1 - np.corrcoef(p[i], q[i])[0, 1] for i in range(5)])
    columns = np.mean([1 - np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(7)])
    found = dist(student, teacher, inter=2.0, intra=0.5, temperature=t)
    assert found.item() == pytest.approx(t**2 * (2.0 * rows + 0.5 * columns))


def test_dist_of_opposite_orders_is_twice_its_weight() -> None:
    p = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    found = dist((2 / 3 - p).log(), p.log(), inter=1.0, intra=0.0)
    assert found.item() == pytest.approx(2.0)


# Features


def test_hint_is_the_mean_squared_difference() -> None:
    assert hint(torch.ones(2, 3, 4, 4), torch.full((2, 3, 4, 4), 3.0)).item() == 4.0


@pytest.mark.parametrize("angle", [0.0, math.pi / 3, math.pi / 2, math.pi])
def test_cosine_is_twice_one_minus_the_cosine_whatever_the_lengths(angle: float) -> None:
    student = 7 * torch.tensor([math.cos(angle), math.sin(angle)])[None, :, None, None]
    teacher = 0.1 * torch.tensor([1.0, 0.0])[None, :, None, None]
    assert cosine(student, teacher).item() == pytest.approx(2 - 2 * math.cos(angle), abs=1e-6)


def test_cosine_compares_channels_at_each_position() -> None:
    expected = 2 * (1 - F.cosine_similarity(features(0), features(1), dim=1)).mean()
    torch.testing.assert_close(cosine(features(0), features(1)), expected)


def test_cosine_angle_adds_the_angle_to_the_square() -> None:
    s, t = features(0), features(1)
    expected = hint(s, t) + 0.3 * (1 - F.cosine_similarity(s, t, dim=1)).mean()
    torch.testing.assert_close(cosine_angle(s, t, balance=0.3), expected)


def test_attention_transfer_ignores_scale_and_channel_count() -> None:
    doubled = torch.cat([3 * features(0), 3 * features(0)], dim=1)
    assert attention_transfer(doubled, features(0)).item() == pytest.approx(0, abs=1e-12)


def test_attention_transfer_of_disjoint_maps_is_its_closed_form() -> None:
    one, other = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    one[0, 0, 0, 0] = other[0, 0, 1, 1] = 5.0
    assert attention_transfer(one, other).item() == pytest.approx(2 / 4)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8])
def test_review_weighs_coarser_averages_less_and_less(size: int) -> None:
    student, teacher = features(0, size=size), features(1, size=size)
    weights, values = [1.0], [F.mse_loss(student, teacher)]
    for bins in (4, 2, 1):
        if bins < size:
            weights.append(weights[-1] / 2)
            coarse = (F.adaptive_avg_pool2d(x, bins) for x in (student, teacher))
            values.append(F.mse_loss(*coarse))
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    torch.testing.assert_close(review([student], [teacher]), expected)


def test_review_of_an_offset_is_its_square_and_of_a_checkerboard_its_finest_part() -> None:
    flat, offset = torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 2.0)
    assert review([offset, offset], [flat, flat]).item() == pytest.approx(2 * 4.0)
    checkerboard = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    found = review([checkerboard.expand(2, 3, 8, 8)], [flat])
    assert found.item() == pytest.approx(1 / (1 + 1 / 2 + 1 / 4 + 1 / 8))


# Relations


def test_similarity_preserving_agrees_with_a_slow_reference() -> None:
    def similarities(x: torch.Tensor) -> np.ndarray:
        flat = x.flatten(1).numpy()
        gram = np.array([[float(np.dot(a, b)) for b in flat] for a in flat])
        return gram / np.sqrt((gram**2).sum(1, keepdims=True))

    student, teacher = features(0), draw(1, 4, 6, 2, 2)  # other channels, other size
    expected = ((similarities(student) - similarities(teacher)) ** 2).sum() / 4**2
    assert similarity_preserving(student, teacher).item() == pytest.approx(expected)


def test_rkd_agrees_with_a_slow_reference() -> None:
    def huber(x: float) -> float:
        return x**2 / 2 if abs(x) <= 1 else abs(x) - 0.5

    def pair(x: np.ndarray, mean: float, i: int, j: int) -> float:
        return float(np.linalg.norm(x[i] - x[j])) / mean

    def triple(x: np.ndarray, i: int, j: int, k: int) -> float:
        a, b = x[j] - x[i], x[k] - x[i]
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / lengths) if lengths else 0.0

    student, teacher, n = features(0), draw(1, 4, 6, 2, 2), 4
    s, t = (x.mean((2, 3)).numpy() for x in (student, teacher))
    pairs = list(itertools.permutations(range(n), 2))
    mean_s, mean_t = (np.mean([pair(x, 1.0, i, j) for i, j in pairs]) for x in (s, t))
    far = sum(huber(pair(s, mean_s, i, j) - pair(t, mean_t, i, j)) for i, j in pairs) / n**2
    turned = sum(
        huber(triple(s, i, j, k) - triple(t, i, j, k))
        for i, j, k in itertools.product(range(n), repeat=3)
    )
    found = rkd(student, teacher, distance=2.0, angle=3.0)
    assert found.item() == pytest.approx(2.0 * far + 3.0 * turned / n**3)


def test_rkd_ignores_where_and_how_large_and_how_turned_features_are() -> None:
    turn, _ = torch.linalg.qr(draw(2, 3, 3))
    moved = 5 * torch.einsum("nfhw,fg->nghw", features(0), turn) + 2
    assert rkd(moved, features(0)).item() == pytest.approx(0, abs=1e-12)


# The schedule and the registry


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("warmup", [0, 0.5, 1, 1, 1]),
        ("decay", [1, 1, 1, 0.5, 0]),
    ],
)
def test_a_weight_rises_first_or_falls_last(schedule: Any, factors: list[float]) -> None:
    found = [weight_factor(schedule, 0.4, progress) for progress in (0, 0.2, 0.5, 0.8, 1)]
    assert found == pytest.approx(factors)
    places = torch.tensor([0, 0.2, 0.5, 0.8, 1], dtype=torch.float64)
    on_device = [float(weight_factor(schedule, 0.4, place)) for place in places]
    assert on_device == pytest.approx(factors)


@pytest.mark.parametrize("schedule", ["warmup", "decay"])
def test_a_weight_that_changes_all_the_time_is_linear(schedule: Any) -> None:
    found = [weight_factor(schedule, 1.0, progress) for progress in (0, 0.25, 1)]
    assert found == ([0, 0.25, 1] if schedule == "warmup" else [1, 0.75, 0])


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ({"name": "kll"}, "did you mean `kl`?"),
        ({"name": "crd"}, "there is no `crd` among the losses"),
        ({"name": "kl", "options": {"temp": 2}}, "no option `temp`; known are temperature"),
        ({"name": "mse", "options": {"temperature": 2}}, "no option .* known are none"),
        ({"name": "dkd", "options": {"temperature": 0}}, "must be above 0 (found 0.0)"),
        ({"name": "kl", "options": {"temperature": math.nan}}, "must be above 0"),
        ({"name": "kl", "options": {"temperature": True}}, "must be above 0 (found True)"),
        ({"name": "kl", "options": {"standardise": 2}}, "must be true or false"),
        ({"name": "margin", "options": {"delta": -1}}, "must be at least 0 (found -1.0)"),
        ({"name": "rkd", "taps": ["late"], "options": {"angle": math.inf}}, "must be at least 0"),
        ({"name": "cross_entropy", "options": {"label_smoothing": 1.5}}, "must be in [0, 1]"),
        ({"name": "hint"}, "`hint` needs exactly one of `taps` (found none)"),
        ({"name": "rkd", "taps": ["early", "late"]}, "exactly one of `taps` (found early, late)"),
        ({"name": "review", "taps": ["late"]}, "two or more different `taps`"),
        ({"name": "review", "taps": ["late", "late"]}, "two or more different `taps`"),
        ({"name": "kl", "taps": ["late"]}, "`kl` takes no `taps`"),
        ({"name": "kl", "teacher": "big"}, "`kl` takes no `teacher`"),
    ],
)
def test_a_wrong_term_is_refused(term: dict, said: str) -> None:
    escaped = said.translate({ord(c): f"\\{c}" for c in "?()[]"})
    with pytest.raises(PipelineError, match=escaped) as refused:
        find_loss(LossTerm.model_validate({"weight": 1.0} | term))
    assert refused.value.where == "distill.losses"


@pytest.mark.parametrize(
    ("term", "batchwise"),
    [
        ({"name": "kl", "options": {"temperature": 4, "standardise": True}}, False),
        ({"name": "cross_entropy", "options": {"label_smoothing": 0}}, False),
        ({"name": "dist", "options": {"intra": 0}}, True),
        ({"name": "cosine", "taps": ["late"], "teacher": "big"}, False),
        ({"name": "review", "taps": ["early", "late"]}, False),
    ],
)
def test_a_right_term_finds_its_loss(term: dict, batchwise: bool) -> None:
    loss = find_loss(LossTerm.model_validate({"weight": 1.0} | term))
    assert loss is LOSSES[term["name"]] and loss.batchwise == batchwise
