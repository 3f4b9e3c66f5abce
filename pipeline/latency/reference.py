"""The frozen reference: a small network that never changes, by which latencies are divided.

The ratio stays the same where an absolute latency does not: on a loaded machine, at a slower clock,
on another machine of the same kind.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from pipeline.core.errors import PipelineError

DIGEST = "d630bdadd68206a7941fc27987b6f0fb4570c331f847e59a6044c696351c528e"
"""SHA-256 of the model's bytes. A new value starts a new series of ratios."""

_SIZE, _CHANNELS, _CLASSES = 64, 3, 10
_WIDTHS = (16, 32, 64)
_IR_VERSION, _OPSET = 9, 18


def reference_model() -> bytes:
    """The reference as ONNX: `image` uint8 [N, 64, 64, 3] to `logits` float32 [N, 10].

    A dense 3x3 convolution, then per stage a depthwise 3x3, a dense 1x1 and a dense 3x3, each with
    ReLU: the layers of small students.

    Raises:
        PipelineError: where the bytes are not the frozen ones.
    """
    model = _build()
    digest = hashlib.sha256(model).hexdigest()
    if digest != DIGEST:
        raise PipelineError(
            f"the frozen reference model has the digest {digest[:12]}, not {DIGEST[:12]}",
            fix="install the versions that pyproject.toml pins",
        )
    return model


def reference_images() -> NDArray[np.uint8]:
    """Fixed noise, uint8 [16, 64, 64, 3]; the reference's latency does not depend on the pixels."""
    rng = np.random.RandomState(1)
    shape = (16, _SIZE, _SIZE, _CHANNELS)
    return rng.randint(0, 256, size=shape, dtype=np.uint8)


def _build() -> bytes:
    # NumPy never changes RandomState's integers, and multiples of powers of two are exact in
    # float32, so every machine makes the same bytes
    rng = np.random.RandomState(0)
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []

    def constant(name: str, value: NDArray[np.generic]) -> str:
        weights.append(numpy_helper.from_array(value, name))
        return name

    def add(kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        output = out or f"{kind.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def random(name: str, shape: tuple[int, ...], fan_in: int) -> str:
        scale = 2.0 ** -np.round(np.log2(fan_in) / 2 + 5)
        return constant(name, (rng.randint(-64, 65, size=shape) * scale).astype(np.float32))

    def conv(x: str, ins: int, outs: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        name = f"weight_{len(weights)}"
        shape = (outs, ins // groups, kernel, kernel)
        weight = random(name, shape, shape[1] * kernel * kernel)
        pads = [kernel // 2] * 4
        size: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
        return add("Relu", add("Conv", x, weight, group=groups, **size))

    x = add("Cast", "image", to=TensorProto.FLOAT)
    x = add("Sub", x, constant("centre", np.array(128, np.float32)))
    x = add("Mul", x, constant("scale", np.array(1 / 64, np.float32)))
    x = add("Transpose", x, perm=[0, 3, 1, 2])
    x, width = conv(x, _CHANNELS, _WIDTHS[0], 3), _WIDTHS[0]
    for wider in _WIDTHS[1:]:
        x = conv(x, width, width, 3, stride=2, groups=width)
        x = conv(x, width, wider, 1)
        x, width = conv(x, wider, wider, 3), wider
    x = add("Flatten", add("GlobalAveragePool", x))
    add("MatMul", x, random("head", (width, _CLASSES), width), out="logits")
    image = helper.make_tensor_value_info(
        "image", TensorProto.UINT8, ["N", _SIZE, _SIZE, _CHANNELS]
    )
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", _CLASSES])
    graph = helper.make_graph(nodes, "reference", [image], [logits], weights)
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(
        graph, opset_imports=[opset], ir_version=_IR_VERSION, producer_name="edgestill"
    )
    return bytes(model.SerializeToString(deterministic=True))
