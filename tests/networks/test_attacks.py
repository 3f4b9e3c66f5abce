"""FGSM and PGD: closed forms on losses whose maximum is known, and limits that always hold."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.networks.attacks import fgsm, pgd, random_start, to_uint8
from pipeline.networks.build import build_network
from pipeline.networks.inference import set_up_torch
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_fgsm_adds_epsilon_times_the_sign_of_the_gradient_and_stays_in_the_pixels_range() -> None:
    pixels = torch.tensor([0, 3, 100, 250, 255], dtype=torch.uint8).reshape(1, 1, 5, 1)
    slope = torch.tensor([-1.0, -2.0, 0.0, 0.5, -1.0]).reshape(1, 1, 5, 1)
    found = fgsm(lambda x: (slope * x).sum(), pixels, epsilon=8)
    assert found.flatten().tolist() == [0, 0, 100, 255, 247]


def test_pgd_reaches_the_corner_of_the_cube_where_the_loss_is_linear() -> None:
    pixels, slope = drawn(3, 4, 4, 3), torch.randn(3, 4, 4, 3)
    found = pgd(lambda x: (slope * x).sum(), pixels, epsilon=4, steps=5, step_size=1, start=None)
    assert torch.equal(found, (pixels.float() + 4 * slope.sign()).clamp(0, 255))


def test_pgd_stops_at_a_maximum_inside_the_cube() -> None:
    """Of -(x - 102)² from 100 with steps of 1: 101, 102, and there the gradient is 0."""
    pixels = torch.full((1, 2, 2, 1), 100, dtype=torch.uint8)
    found = pgd(
        lambda x: -(x - 102).square().sum(), pixels, epsilon=8, steps=9, step_size=1, start=None
    )
    assert torch.equal(found, torch.full((1, 2, 2, 1), 102.0))


def test_a_start_counts_as_part_of_the_perturbation_and_is_projected_too() -> None:
    pixels = torch.full((1, 1, 2, 1), 100, dtype=torch.uint8)
    start = torch.tensor([30.0, -3.0]).reshape(1, 1, 2, 1)
    found = pgd(lambda x: x.sum(), pixels, epsilon=8, steps=0, step_size=1, start=start)
    assert found.flatten().tolist() == [108, 97]


def student(size: int, channels: int, classes: int) -> PixelsToLogits:
    set_up_torch(0)
    network = Network(arch="mobilenetv3_small_050", stem_stride="auto")
    made = build_network(network, classes=classes, channels=channels, image_size=size)
    return PixelsToLogits(made, student_normalisation(channels)).eval()


@pytest.mark.parametrize(("size", "channels", "classes"), [(28, 1, 10), (32, 3, 2)])
def test_pgd_raises_a_students_loss_and_leaves_its_parameters_alone(
    size: int, channels: int, classes: int
) -> None:
    model, pixels = student(size, channels, classes), drawn(4, size, size, channels)
    labels = torch.arange(4) % classes

    def loss(x: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x), labels, reduction="sum")

    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = random_start(pixels, 8, torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = pgd(loss, pixels, epsilon=8, steps=5, step_size=2, start=start)
        again = pgd(loss, pixels, epsilon=8, steps=5, step_size=2, start=start)
        raised = loss(to_uint8(found, pixels, 8)) - loss(pixels)
    assert raised > 0
    assert torch.equal(found, again)
    assert (found - pixels).abs().max() <= 8
    assert all(parameter.grad is None for parameter in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_mean_over_images_gives_the_perturbation_of_a_sum() -> None:
    model, pixels, labels = student(28, 1, 10), drawn(4, 28, 28, 1), torch.arange(4)
    found = [
        fgsm(lambda x, how=how: F.cross_entropy(model(x), labels, reduction=how), pixels, epsilon=8)
        for how in ("sum", "mean")
    ]
    assert (found[0] != found[1]).float().mean() < 1e-3  # gradients that round to 0 in one of them


def test_a_random_start_is_uniform_and_its_generators_own() -> None:
    pixels = torch.zeros(16, 32, 32, 3)
    first = random_start(pixels, 8, torch.Generator().manual_seed(3))
    assert torch.equal(first, random_start(pixels, 8, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, random_start(pixels, 8, torch.Generator().manual_seed(4)))
    assert first.abs().max() <= 8
    assert first.mean().abs() < 0.1
    assert first.var() == pytest.approx(16**2 / 12, rel=0.02)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.floats(0.1, 40), st.floats(0.1, 40))
def test_uint8_images_never_leave_the_cube(seed: int, epsilon: float, step_size: float) -> None:
    pixels = drawn(2, 3, 3, 1, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    start = random_start(pixels, epsilon, generator)
    slope = torch.randn(pixels.shape, generator=generator)
    found = pgd(
        lambda x: (slope * x).sum(),
        pixels,
        epsilon=epsilon,
        steps=2,
        step_size=step_size,
        start=start,
    )
    assert found.min() >= 0 and found.max() <= 255
    whole = to_uint8(found, pixels, epsilon)
    assert whole.dtype == torch.uint8
    assert (whole.float() - pixels.float()).abs().max() <= epsilon
    assert (whole.float() - found).abs().max() <= 1
