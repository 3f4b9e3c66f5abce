"""Convolutions on small maps, faster than oneDNN's, which torch uses on a CPU.

Depthwise ones: oneDNN has a kernel for the weights' gradients up to 3 x 3 weights and where the
map is not smaller than the weights (`init_conf` of `jit_uni_dw_conv_bwd_weights_kernel` in its
source). Otherwise it computes a matrix product per image and channel. For 5 x 5 weights of
288 channels on 2 x 2 pixels that took forty times as long as the code here, and such layers took
30 to 40% of a student's whole training step (two cores, AVX2, batches of 128).

Pointwise ones are matrix products. On one pixel, as in squeeze-and-excitation and before a
classifier, torch's linear layer takes two fifths of the time, forward and backward, for 16 to
1,280 channels in batches of 32 to 256 (one core, AVX-512); on 2 x 2 pixels five sixths, and from
3 x 3 on as long.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch

_DEPTHWISE_PIXELS = 16
"""Of the largest map: the work grows with the square of its pixels, and beyond 4 x 4 little is
gained."""
_POINTWISE_PIXELS = 4
_KERNEL = 3
"""Largest side of depthwise weights for which oneDNN has a kernel."""

Pair = tuple[int, int]


def fast_conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor:
    """`torch.nn.functional.conv2d`, faster on small maps where gradients are computed on a CPU.

    Arguments, output and gradients are those of torch, up to rounding.

    Example:
        >>> with core.patches.conv2d(fast_conv2d):
        ...     logits = network(images)
    """
    size, kernel = input.shape[-2:], weight.shape[-2:]
    at_hand = input.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    plain = not isinstance(padding, str) and set(_pair(dilation)) == {1}
    if at_hand and plain and input.dim() == 4 and torch.is_grad_enabled():
        pixels, stepping = math.prod(size), (_pair(stride), _pair(padding))
        pointwise = groups == 1 and kernel == (1, 1) and stepping == ((1, 1), (0, 0))
        if pointwise and pixels <= _POINTWISE_PIXELS:
            return _pointwise(input, weight, bias)
        depthwise = groups == input.shape[1] == weight.shape[0]
        slow = max(kernel) > _KERNEL or max(kernel) > min(size)
        if depthwise and slow and pixels <= _DEPTHWISE_PIXELS:
            found = _Depthwise.apply(input, weight, *stepping)  # type: ignore[no-untyped-call]
            assert isinstance(found, torch.Tensor)
            return found if bias is None else found + bias[:, None, None]
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _pointwise(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """A linear layer over the channels of every pixel; no copy in channels-last memory."""
    by_pixel = torch.nn.functional.linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias)
    return by_pixel.permute(0, 3, 1, 2)


class _Depthwise(torch.autograd.Function):
    """Output and input gradient by oneDNN, the weights' gradient as one product per channel."""

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair
    ) -> torch.Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(input, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        by_input = by_weight = None
        if ctx.needs_input_grad[0]:
            by_input = torch.ops.aten.convolution_backward(
                slope, input, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0),
                len(weight), (True, False, False),
            )[0]  # fmt: skip
        if ctx.needs_input_grad[1]:
            by_weight = _by_weight(input, slope, weight.shape, ctx.stride, ctx.padding)
        return by_input, by_weight, None, None


def _by_weight(
    input: torch.Tensor, slope: torch.Tensor, shape: torch.Size, stride: Pair, padding: Pair
) -> torch.Tensor:
    """The gradient [C, 1, K, L] of weights, for an input [N, C, H, W] and slopes [N, C, H', W'].

    The products of every pixel with every slope, summed over images; then the sum of those that
    belong to each tap of the weights.
    """
    images, channels = input.shape[:2]
    pixels = input.permute(1, 2, 3, 0).reshape(channels, -1, images).contiguous()
    slopes = slope.transpose(0, 1).reshape(channels, images, -1).contiguous()
    rows, columns = (
        _taps(*axis)
        for axis in zip(input.shape[2:], slope.shape[2:], shape[2:], stride, padding, strict=True)
    )
    taps = torch.einsum("aio,bjp->ijopab", rows, columns).reshape(-1, math.prod(shape[2:]))
    return (torch.bmm(pixels, slopes).flatten(1) @ taps.to(slopes.dtype)).reshape(shape)


@lru_cache(maxsize=64)
def _taps(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> torch.Tensor:
    """[kernel, inputs, outputs] along one axis: 1 where a tap multiplies an input for an output."""
    tap = torch.arange(kernel)[:, None, None]
    pixel = torch.arange(inputs)[None, :, None]
    first = torch.arange(outputs)[None, None, :] * stride - padding
    return (pixel == first + tap).float()


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else tuple(value)
