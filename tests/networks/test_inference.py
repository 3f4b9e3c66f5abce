"""Logits of a split: the same bits as ever for small images, less memory for large ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.cli.params import load_params
from pipeline.networks.build import build_network
from pipeline.networks.inference import evaluate, predict, training_device
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from tests.training.conftest import ROOT

SHIPPED = load_params(ROOT / "params.yaml")
NETWORKS = {name: SHIPPED.students.zoo[name] for name in SHIPPED.students.enabled} | {
    name: SHIPPED.teachers.zoo[name].network for name in SHIPPED.teachers.enabled
}


def built(network: Network, size: int, channels: int) -> PixelsToLogits:
    torch.manual_seed(0)
    made = build_network(network, classes=10, channels=channels, image_size=size)
    return PixelsToLogits(made, student_normalisation(channels))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_default_networks_give_the_logits_of_500_images_a_call(name: str) -> None:
    model = built(NETWORKS[name], 28, 1)
    images = np.random.default_rng(0).integers(0, 256, (520, 28, 28, 1), np.uint8)
    with torch.no_grad():
        pixels = torch.from_numpy(images)
        model.eval()
        expected = torch.cat([model(pixels[:500]), model(pixels[500:])])
        model.train()
    assert torch.equal(predict(model, images), expected)
    assert model.training


class Counts(torch.nn.Module):
    """Notes how many images of which size it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []
        self.weight = torch.nn.Parameter(torch.zeros(3, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append((len(images), images.shape[2]))
        return images.mean((2, 3)) @ self.weight


@pytest.mark.parametrize(
    ("input_size", "expected"), [(None, [(12, 28)]), (224, [(10, 224), (2, 224)])]
)
def test_a_teacher_that_enlarges_images_gets_fewer_of_them(
    input_size: int | None, expected: list[tuple[int, int]]
) -> None:
    counts = Counts()
    model = PixelsToLogits(counts, student_normalisation(3), input_size)
    predict(model, np.zeros((12, 28, 28, 3), np.uint8))
    assert counts.seen == expected


def peak(work: Callable[[], object]) -> int:
    """The most bytes of tensors that `work` holds at a time beyond those that were there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    assert watched.profiler is not None and watched.profiler.kineto_results is not None
    events = watched.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    return int(np.cumsum([size for _, size in sorted(changes, key=lambda one: one[0])]).max())


@pytest.mark.skipif(training_device().type != "cpu", reason="measured by allocations on the CPU")
def test_evaluating_takes_less_memory_than_a_training_step() -> None:
    """At 224 pixels and a batch of 8; the profiler counts the bytes of all tensors."""
    model = built(Network(arch="mobilenetv4_conv_small_050"), 224, 3)
    images = np.zeros((24, 224, 224, 3), np.uint8)
    labels = np.zeros(24, np.int64)

    def step() -> None:
        model(torch.from_numpy(images[:8])).square().mean().backward()

    assert peak(lambda: evaluate(model, images, labels)) < peak(step)
