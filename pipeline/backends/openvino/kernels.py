"""Which kernels OpenVINO's CPU plugin has chosen for a model of anybody."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from pipeline.backends.base.anatomy import INT8, Port, Shapes, drawn
from pipeline.backends.openvino.run import _openvino

if TYPE_CHECKING:
    import openvino

CPU = "CPU"
TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64"}
"""NumPy's names of OpenVINO's types."""


def kernels_of(compiled: openvino.CompiledModel) -> dict[str, str]:
    """By name of an operator: the type that the kernel which contains it multiplies.

    `runtimePrecision` of a product with compressed weights is that of the weights: there the name
    of the kernel tells the type of the product.
    """
    found = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = {key: value.astype(str) for key, value in node.get_rt_info().items()}
        kernel, precision = info["primitiveType"], info["runtimePrecision"]
        tail = kernel.rpartition("_")[2].lower()
        if tail == "i8":
            done = INT8
        elif precision in ("i8", "u8", "i4", "u4", "nf4"):
            done = f"{TYPES.get(tail, tail)}, weights"
        else:
            done = TYPES.get(precision, precision)
        for name in info["originalLayersNames"].split(","):
            found[name.split("/Dequantization")[0]] = done
    return found


def quantizes_anew(
    model: openvino.Model, kernels: dict[str, str], ports: tuple[Port, ...], call: Shapes
) -> bool | None:
    """Whether products with compressed weights quantize their activations in each call.

    The plugin has a property for it, and obeys it or not by type and CPU. With and without it, a
    seeded input gives the same bits only if nothing was quantized. Sizes that are not fixed are 8
    for this. None where the model does not take such an input.
    """
    if not any(done.endswith(", weights") for done in kernels.values()):
        return False
    sizes = {
        port.name: tuple(8 if isinstance(size, str) else size for size in port.shape or ())
        for port in ports
    }
    inputs = list(drawn(ports, sizes | dict(call)).values())
    results = []
    try:
        for properties in ({}, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}):
            compiled = _openvino().Core().compile_model(model, CPU, properties)
            results.append([np.array(value) for value in compiled(inputs).values()])
    except RuntimeError:
        return None
    return not all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


def kernel_count(compiled: openvino.CompiledModel) -> str:
    nodes = compiled.get_runtime_model().get_ordered_ops()
    kinds = Counter(node.get_rt_info()["layerType"].astype(str) for node in nodes)
    for aside in ("Const", "Input", "Output", "Parameter"):
        kinds.pop(aside, None)
    reorders = kinds.get("Reorder", 0) + kinds.get("Convert", 0)
    return f"{kinds.total()} kernels, of which {reorders} only change a type or layout"
