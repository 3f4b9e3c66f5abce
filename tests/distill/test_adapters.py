"""Adapters: shapes, what depends on what, and the same bits every time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from pipeline.distill.adapters import Adapter, ReviewAdapter, match_size
from pipeline.distill.losses.features import review

Shapes = list[tuple[int, int, int]]

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="none"))

# Student and teacher, shallow to deep: [F, H, W] of equal sizes, halves, odd sizes, finer and
# coarser teachers, levels of one size, and maps that are not square.
LEVELS: list[tuple[Shapes, Shapes]] = [
    ([(8, 16, 16), (12, 8, 8), (16, 4, 4)], [(10, 16, 16), (20, 8, 8), (30, 4, 4)]),
    ([(8, 14, 14), (16, 7, 7)], [(10, 28, 28), (20, 14, 14)]),
    ([(8, 15, 15), (16, 8, 8)], [(10, 7, 7), (20, 4, 4)]),
    ([(8, 7, 7), (8, 7, 7), (16, 1, 1)], [(10, 14, 14), (20, 7, 7), (20, 1, 1)]),
    ([(8, 12, 9), (16, 6, 5)], [(10, 12, 9), (20, 6, 4)]),
]


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def maps(shapes: Shapes, n: int = 3, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, *shape, generator=generator).requires_grad_() for shape in shapes]


def review_adapter(student: Shapes, teacher: Shapes) -> ReviewAdapter:
    torch.manual_seed(0)
    return ReviewAdapter(
        [torch.Size([1, *shape]) for shape in student],
        [torch.Size([1, *shape]) for shape in teacher],
    )


@pytest.mark.parametrize(
    ("student", "teacher", "matched"),
    [
        ((7, 7), (7, 7), (7, 7)),
        ((14, 14), (7, 7), (7, 7)),
        ((5, 8), (15, 16), (5, 8)),
        ((15, 15), (7, 7), (7, 7)),
        ((8, 5), (6, 9), (6, 5)),
        ((9, 9), (1, 1), (1, 1)),
    ],
)
def test_both_sides_are_averaged_down_to_the_smaller_height_and_width(
    student: tuple[int, int], teacher: tuple[int, int], matched: tuple[int, int]
) -> None:
    ours, theirs = maps([(3, *student)])[0], maps([(5, *teacher)], seed=1)[0]
    for found, given in zip(match_size(ours, theirs), (ours, theirs), strict=True):
        torch.testing.assert_close(found, F.adaptive_avg_pool2d(given, matched))


def test_an_adapter_gives_the_teachers_channels_and_keeps_the_size() -> None:
    adapter = Adapter(8, 20)
    (features,) = maps([(8, 7, 5)])
    adapted = adapter(features)
    assert adapted.shape == (3, 20, 7, 5)
    adapted.square().sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())


@pytest.mark.parametrize(("student", "teacher"), LEVELS)
def test_review_gives_the_teachers_shapes_and_trains_every_parameter(
    student: Shapes, teacher: Shapes
) -> None:
    adapter, features, targets = review_adapter(student, teacher), maps(student), maps(teacher)
    fused = adapter(features)
    assert [tuple(level.shape) for level in fused] == [(3, *shape) for shape in teacher]
    review(fused, [target.detach() for target in targets]).backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for level in features)


def test_review_looks_back_from_shallow_levels_to_deeper_ones_only() -> None:
    student, teacher = LEVELS[0]
    adapter = review_adapter(student, teacher).eval()
    for level in range(3):
        features = maps(student)
        adapter(features)[level].square().sum().backward()
        seen = [x.grad is not None and bool(x.grad.abs().sum() > 0) for x in features]
        assert seen == [source >= level for source in range(3)]


def test_review_attention_decides_between_a_level_and_the_deeper_residual() -> None:
    """With attention forced to one side, the other has no say."""
    student, teacher = LEVELS[0]
    adapter = review_adapter(student, teacher).eval()
    attention = adapter.fusions[0].attention
    torch.nn.init.zeros_(attention.weight)
    for weights, deaf in (((1e4, -1e4), [False, True, True]), ((-1e4, 1e4), [True, False, False])):
        attention.bias.data = torch.tensor(weights)
        features = maps(student)
        adapter(features)[0].square().sum().backward()
        assert [float(x.grad.abs().sum()) == 0 for x in features] == deaf


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("student", "teacher"), LEVELS)
def test_gradients_are_the_same_bits_where_only_deterministic_kernels_are_allowed(
    student: Shapes, teacher: Shapes, layout: torch.memory_format, device: str
) -> None:
    def gradients() -> list[torch.Tensor]:
        adapter = review_adapter(student, teacher).to(device)
        single = Adapter(student[0][0], teacher[0][0]).to(device)
        features = [x.detach().to(device, memory_format=layout) for x in maps(student)]
        features = [x.requires_grad_() for x in features]
        targets = [x.detach().to(device, memory_format=layout) for x in maps(teacher, seed=1)]
        ours, theirs = match_size(features[0], targets[0])
        (review(adapter(features), targets) + F.mse_loss(single(ours), theirs)).backward()
        learned = [*adapter.parameters(), *single.parameters(), *features]
        return [tensor.grad for tensor in learned if tensor.grad is not None]

    once, again = gradients(), gradients()
    assert len(once) == len(again) > 10
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
