"""Convolutions on small maps: the same numbers as torch's, computed another way."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pipeline.core.patches import conv2d
from pipeline.training import convolutions
from pipeline.training.convolutions import fast_conv2d

CHANNELS = 6


def both_ways(
    size: tuple[int, int],
    kernel: int,
    dtype: torch.dtype = torch.float32,
    groups: int = CHANNELS,
    **options: object,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The output and all gradients, of torch's convolution and of ours."""
    torch.manual_seed(kernel)
    image = torch.randn(3, CHANNELS, *size).contiguous(memory_format=torch.channels_last)
    weights = torch.randn(CHANNELS, CHANNELS // groups, kernel, kernel), torch.randn(CHANNELS)
    leaves = [leaf.to(dtype).requires_grad_() for leaf in (image, *weights)]
    found = []
    for mode in (nullcontext(), conv2d(fast_conv2d)):
        with mode:
            out = F.conv2d(*leaves, groups=groups, **options)  # type: ignore[call-overload]
        slope = torch.linspace(-1, 1, out.numel(), dtype=dtype).reshape(out.shape)
        found.append([out, *torch.autograd.grad(out, leaves, slope)])
    return found[0], found[1]


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (3, 5)])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (5, 2), (5, (2, 3)), (7, 3)])
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
def test_outputs_and_gradients_are_those_of_a_convolution(
    size: tuple[int, int], kernel: int, padding: object, stride: object
) -> None:
    convolutions._taps.cache_clear()
    theirs, ours = both_ways(size, kernel, padding=padding, stride=stride)
    ours_was_asked = convolutions._taps.cache_info().currsize > 0
    assert ours_was_asked == (kernel > 3 or min(size) < kernel)
    assert theirs[0].shape == ours[0].shape
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "kernel", "groups", "padding"), [((4, 4), 5, CHANNELS, 2), ((2, 2), 1, 1, 0)]
)
def test_in_double_precision_they_agree_to_its_last_digits(
    size: tuple[int, int], kernel: int, groups: int, padding: int
) -> None:
    theirs, ours = both_ways(size, kernel, torch.float64, groups, padding=padding)
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 1), (2, 3)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("outputs", [1, 9])
@pytest.mark.parametrize("biased", [True, False])
def test_a_pointwise_one_on_a_few_pixels_is_a_linear_layer_of_the_same_layout(
    size: tuple[int, int], layout: torch.memory_format, outputs: int, biased: bool
) -> None:
    torch.manual_seed(1)
    image = torch.randn(5, CHANNELS, *size).contiguous(memory_format=layout)
    leaves = [image, torch.randn(outputs, CHANNELS, 1, 1), *[torch.randn(outputs)] * biased]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    outs = [F.conv2d(*leaves)]
    with conv2d(fast_conv2d):
        outs.append(F.conv2d(*leaves))
    assert ("Convolution" in str(outs[1].grad_fn)) == (size == (2, 3))
    slope = torch.linspace(-1, 1, outs[0].numel()).reshape(outs[0].shape)
    theirs, ours = ([out, *torch.autograd.grad(out, leaves, slope)] for out in outs)
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(one, other)
    if layout == torch.channels_last:
        assert outs[1].is_contiguous(memory_format=layout)


def test_after_a_failure_the_convolution_is_torchs_again() -> None:
    with pytest.raises(ZeroDivisionError), conv2d(fast_conv2d):
        raise ZeroDivisionError
    assert F.conv2d is torch.conv2d


@pytest.mark.parametrize(
    ("size", "kernel", "options"),
    [
        ((4, 4), 3, {"padding": 1}),
        ((8, 8), 5, {"padding": 2}),
        ((4, 4), 5, {"padding": "same"}),
        ((4, 4), 3, {"padding": 2, "dilation": 2}),
        ((2, 2), 1, {"groups": 1, "stride": 2}),
        ((2, 2), 1, {"groups": 1, "padding": 1}),
        ((2, 2), 1, {"groups": 2}),
    ],
)
def test_all_else_is_left_to_torch(
    size: tuple[int, int], kernel: int, options: dict[str, Any]
) -> None:
    theirs, ours = both_ways(size, kernel, **options)
    assert all(torch.equal(one, other) for one, other in zip(theirs, ours, strict=True))


def test_without_gradients_and_outside_of_it_all_is_torchs() -> None:
    image, weight = torch.randn(1, CHANNELS, 2, 2), torch.randn(CHANNELS, 1, 5, 5)
    weight.requires_grad_()
    outside = F.conv2d(image, weight, padding=2, groups=CHANNELS)
    with conv2d(fast_conv2d):
        inside = F.conv2d(image, weight, padding=2, groups=CHANNELS)
        with torch.no_grad():
            assert F.conv2d(image, weight, padding=2, groups=CHANNELS).grad_fn is None
    assert "ConvolutionBackward" in str(outside.grad_fn)
    assert "_Depthwise" in str(inside.grad_fn)
