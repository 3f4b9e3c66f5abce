"""The operators of ML programs on torch's tensors, by MIL's definitions.

<https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html> has their
names, operands, defaults and formulas, which are kept here. Used by graph.py, also in bundles.
"""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import torch
import torch.nn.functional as F


def _pads(
    x: torch.Tensor, kernel: list[int], strides: list[int], dilations: list[int],
    pad_type: str, pad: list[int] | None,
) -> list[int]:  # fmt: skip
    """Elements in front of and behind each spatial axis."""
    if pad_type == "custom":
        return list(pad or [0] * 2 * len(kernel))
    found = [0] * 2 * len(kernel)
    if pad_type == "valid":
        return found
    for axis, size in enumerate(x.shape[2:]):
        span = (kernel[axis] - 1) * dilations[axis] + 1
        missing = max((-(-size // strides[axis]) - 1) * strides[axis] + span - size, 0)
        front = missing // 2 if pad_type == "same" else missing - missing // 2
        found[2 * axis : 2 * axis + 2] = front, missing - front
    return found


def _padded(x: torch.Tensor, pads: list[int], value: float = 0.0) -> torch.Tensor:
    """torch names the last axis first."""
    pairs = [pads[i : i + 2] for i in range(0, len(pads), 2)]
    flat = [size for pair in reversed(pairs) for size in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def _pad(
    x: torch.Tensor, pad: Any, mode: str = "constant", constant_val: Any = 0.0
) -> torch.Tensor:
    """`pad` has two sizes for each of the last axes, in their order."""
    pairs = [(0, 0)] * (x.dim() - len(pad) // 2) + list(zip(pad[::2], pad[1::2]))
    if mode == "constant":
        return _padded(x, [size for pair in pairs for size in pair], float(constant_val))
    how: Any = {"reflect": "reflect", "replicate": "edge"}[mode]
    return torch.from_numpy(np.pad(x.numpy(), pairs, mode=how))


def _conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None,
    strides: Any = None, pad_type: str = "valid", pad: Any = None, dilations: Any = None,
    groups: int = 1,
) -> torch.Tensor:  # fmt: skip
    axes = weight.dim() - 2
    strides, dilations = strides or [1] * axes, dilations or [1] * axes
    pads = _pads(x, list(weight.shape[2:]), strides, dilations, pad_type, pad)
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[axes]
    if pads[::2] == pads[1::2]:
        return function(x, weight, bias, strides, pads[::2], dilations, groups)
    return function(_padded(x, pads), weight, bias, strides, 0, dilations, groups)


def _max_pool(
    x: torch.Tensor, kernel_sizes: Any, strides: Any = None, pad_type: str = "valid",
    pad: Any = None, ceil_mode: bool = False,
) -> torch.Tensor:  # fmt: skip
    axes = len(kernel_sizes)
    strides = strides or [1] * axes
    pads = _pads(x, kernel_sizes, strides, [1] * axes, pad_type, pad)
    padded = _padded(x, pads, -torch.inf)
    return F.max_pool2d(padded, kernel_sizes, strides, ceil_mode=ceil_mode)


def _avg_pool(
    x: torch.Tensor, kernel_sizes: Any, strides: Any = None, pad_type: str = "valid",
    pad: Any = None, exclude_padding_from_average: bool = False, ceil_mode: bool = False,
) -> torch.Tensor:  # fmt: skip
    axes = len(kernel_sizes)
    strides = strides or [1] * axes
    pads = _pads(x, kernel_sizes, strides, [1] * axes, pad_type, pad)
    pool = F.avg_pool2d
    sums = pool(_padded(x, pads), kernel_sizes, strides, ceil_mode=ceil_mode)
    if not exclude_padding_from_average:
        return sums
    ones = _padded(torch.ones_like(x), pads)
    return sums / pool(ones, kernel_sizes, strides, ceil_mode=ceil_mode)


def _channels(value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return value.reshape(-1, *[1] * (x.dim() - 2))


def _batch_norm(
    x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, gamma: Any = None,
    beta: Any = None, epsilon: Any = 1e-5,
) -> torch.Tensor:  # fmt: skip
    result = (x - _channels(mean, x)) * torch.rsqrt(_channels(variance, x) + epsilon)
    result = result if gamma is None else result * _channels(gamma, x)
    return result if beta is None else result + _channels(beta, x)


def _layer_norm(
    x: torch.Tensor, axes: Any = None, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5
) -> torch.Tensor:
    dims = sorted(axis % x.dim() for axis in axes or [-1])
    shape = [x.shape[i] if i in dims else 1 for i in range(dims[0], x.dim())]
    centred = x - x.mean(dims, keepdim=True)
    result = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + epsilon)
    result = result if gamma is None else result * gamma.reshape(shape)
    return result if beta is None else result + beta.reshape(shape)


def _gelu(x: torch.Tensor, mode: str = "EXACT") -> torch.Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def _reduce(function: Any) -> Any:
    def reduce(x: torch.Tensor, axes: Any = None, keep_dims: bool = False) -> torch.Tensor:
        dims = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes]
        result: torch.Tensor = function(x, dim=dims, keepdim=keep_dims)
        return result

    return reduce


def _slice(
    x: torch.Tensor, begin: Any, end: Any, stride: Any = None, begin_mask: Any = None,
    end_mask: Any = None, squeeze_mask: Any = None,
) -> torch.Tensor:  # fmt: skip
    rank = x.dim()
    none = [False] * rank
    masks = [none if m is None else [bool(one) for one in m] for m in (begin_mask, end_mask)]
    squeezed = none if squeeze_mask is None else [bool(one) for one in squeeze_mask]
    index: list[Any] = []
    for i, step in enumerate(stride or [1] * rank):
        if squeezed[i]:
            index.append(begin[i])
        else:
            first = None if masks[0][i] else begin[i]
            index.append(slice(first, None if masks[1][i] else end[i], step))
    return torch.from_numpy(np.ascontiguousarray(x.numpy()[tuple(index)]))


def _split(
    x: torch.Tensor, axis: int, num_splits: Any = None, split_sizes: Any = None
) -> tuple[torch.Tensor, ...]:
    return torch.split(x, split_sizes or x.shape[axis] // num_splits, axis)


def _matmul(
    x: torch.Tensor, y: torch.Tensor, transpose_x: bool = False, transpose_y: bool = False
) -> torch.Tensor:
    return torch.matmul(x.mT if transpose_x else x, y.mT if transpose_y else y)


def _upsample_bilinear(
    x: torch.Tensor, scale_factor_height: Any = 1, scale_factor_width: Any = 1,
    align_corners: bool = True, half_pixel_centers: Any = None,
) -> torch.Tensor:  # fmt: skip
    if half_pixel_centers is not None and bool(half_pixel_centers) == align_corners:
        raise ValueError("upsample_bilinear with these corners is not evaluated here")
    size = [round(x.shape[2] * float(scale_factor_height)),
            round(x.shape[3] * float(scale_factor_width))]  # fmt: skip
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def _along(value: Any, x: torch.Tensor, axis: Any) -> torch.Tensor:
    """A scalar, or a vector along an axis of `x`, to be broadcast."""
    given: torch.Tensor = torch.as_tensor(value, dtype=torch.float32)
    if given.dim() != 1:
        return given
    shape = [1] * x.dim()
    shape[axis] = -1
    return given.reshape(shape)


def _quantize(
    input: torch.Tensor, scale: Any, output_dtype: str, zero_point: Any = 0, axis: Any = None
) -> torch.Tensor:
    whole = torch.round(input / _along(scale, input, axis)) + _along(zero_point, input, axis)
    limits = np.iinfo(output_dtype)
    return whole.clamp(float(limits.min), float(limits.max)).to(getattr(torch, output_dtype))


def _dequantize(
    input: torch.Tensor, scale: Any, zero_point: Any = 0, axis: Any = None
) -> torch.Tensor:
    return (input.float() - _along(zero_point, input, axis)) * _along(scale, input, axis)


def _blockwise(data: torch.Tensor, scale: torch.Tensor, offset: Any = None) -> torch.Tensor:
    for axis, size in enumerate(data.shape):
        scale = scale.repeat_interleave(size // scale.shape[axis], axis)
        if offset is not None:
            offset = offset.repeat_interleave(size // offset.shape[axis], axis)
    return scale * (data.float() - (0 if offset is None else offset.float()))


OPERATORS: dict[str, Callable[..., Any]] = {
    "abs": lambda x: torch.abs(x),
    "add": lambda x, y: x + y,
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "cast": lambda x, **_: x,  # between floats: graph.py rounds to the output's type
    "clip": lambda x, alpha, beta: torch.clamp(x, float(alpha), float(beta)),
    "concat": lambda values, axis, **_: torch.cat(list(values), axis),
    "constexpr_affine_dequantize": lambda quantized_data, zero_point, scale, axis: _dequantize(
        quantized_data, scale, zero_point, axis
    ),
    "constexpr_blockwise_shift_scale": _blockwise,
    "conv": _conv,
    "dequantize": _dequantize,
    "erf": lambda x: torch.erf(x),
    "exp": lambda x: torch.exp(x),
    "expand_dims": lambda x, axes: x.reshape(_expanded(x.shape, axes)),
    "gelu": _gelu,
    "inverse": lambda x, epsilon=1e-4: 1 / (x + epsilon),
    "layer_norm": _layer_norm,
    "leaky_relu": lambda x, alpha: F.leaky_relu(x, float(alpha)),
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
    "log": lambda x, epsilon=1e-45: torch.log(x + epsilon),
    "matmul": _matmul,
    "max_pool": _max_pool,
    "maximum": lambda x, y: torch.maximum(x, torch.as_tensor(y)),
    "minimum": lambda x, y: torch.minimum(x, torch.as_tensor(y)),
    "mul": lambda x, y: x * y,
    "pad": _pad,
    "pixel_shuffle": lambda x, upscale_factor: F.pixel_shuffle(x, upscale_factor),
    "pow": lambda x, y: torch.pow(x, y),
    "quantize": _quantize,
    "real_div": lambda x, y: x / y,
    "reduce_l2_norm": _reduce(torch.linalg.vector_norm),
    "reduce_max": _reduce(torch.amax),
    "reduce_mean": _reduce(torch.mean),
    "reduce_min": _reduce(torch.amin),
    "reduce_sum": _reduce(torch.sum),
    "relu": lambda x: torch.relu(x),
    "relu6": lambda x: torch.clamp(x, 0, 6),
    "reshape": lambda x, shape: x.reshape(shape),
    "rsqrt": lambda x, epsilon=1e-12: torch.rsqrt(x + epsilon),
    "sigmoid": lambda x: torch.sigmoid(x),
    "sigmoid_hard": lambda x, alpha=0.2, beta=0.5: torch.clamp(x * alpha + beta, 0, 1),
    "silu": lambda x: F.silu(x),
    "slice_by_index": _slice,
    "softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "softplus": lambda x: F.softplus(x),
    "split": _split,
    "sqrt": lambda x: torch.sqrt(x),
    "square": lambda x: torch.square(x),
    "squeeze": lambda x, axes=None: x.squeeze() if axes is None else x.squeeze(tuple(axes)),
    "sub": lambda x, y: x - y,
    "tanh": lambda x: torch.tanh(x),
    "thresholded_relu": lambda x, alpha=1.0: torch.where(x >= alpha, x, torch.zeros(())),
    "tile": lambda x, reps: x.repeat(reps),
    "transpose": lambda x, perm: x.permute(perm),
    "upsample_bilinear": _upsample_bilinear,
    "upsample_nearest_neighbor": lambda x, scale_factor_height=1, scale_factor_width=1: (
        F.interpolate(x, scale_factor=(float(scale_factor_height), float(scale_factor_width)))
    ),
}
"""By MIL's names, with the names and defaults of their operands."""


def _expanded(shape: tuple[int, ...], axes: list[int]) -> list[int]:
    rank = len(shape) + len(axes)
    added, rest = {axis % rank for axis in axes}, iter(shape)
    return [1 if i in added else next(rest) for i in range(rank)]
