"""What verify.py lets pass in int8: each right evaluation of the same graph, with room to spare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.backends.openvino import run as openvino_run
from pipeline.backends.tflite.run import open_interpreter
from pipeline.bundle.records import Bundle
from pipeline.export import session

Logits = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
STEPS = 127
"""Of int8, from 0 to the largest logit."""


def in_float(model: Path) -> Logits:
    """Each rounding of a Q/DQ graph in float32."""
    return session.load(str(model), threads=1, int8_kernels=False)


def as_on_arm(model: Path) -> Logits:
    """What OpenVINO is told on every CPU but x86, on this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_run.platform, "machine", lambda: "aarch64")
        compiled = openvino_run.compile_model(openvino_run.read(str(model)), threads=1, batch=1)
        kernels = [
            node.get_rt_info()["runtimePrecision"].astype(str)
            for node in compiled.get_runtime_model().get_ordered_ops()
            if node.get_rt_info()["layerType"].astype(str) in ("Convolution", "FullyConnected")
        ]
        assert kernels and set(kernels) == {"f32"}
        return openvino_run.load(str(model), threads=1, batch=1)


def by_reference(model: Path) -> Logits:
    """LiteRT's plain loops in place of its kernels and XNNPACK's."""
    from ai_edge_litert.interpreter import OpResolverType

    interpreter = open_interpreter(
        str(model), experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    (image,), (logits,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        interpreter.set_tensor(image["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(logits["index"])

    return run


@pytest.mark.parametrize(
    ("name", "other"),
    [("onnxruntime", in_float), ("openvino", as_on_arm), ("tflite", by_reference)],
)
def test_another_right_evaluation_of_int8_stays_within_half_of_the_tolerances(
    name: str, other: Callable[[Path], Logits], shipped: dict[str, list[Path]]
) -> None:
    (folder,) = (one for one in shipped[name] if one.name.endswith("int8"))
    bundle, golden = Bundle.read(folder / "bundle.json"), np.load(folder / "golden.npz")
    run = other(folder / bundle.model_file)
    logits = np.concatenate([run(golden["images"][i : i + 1]) for i in range(bundle.golden.images)])
    errors = np.abs(logits - golden["logits"])
    step = np.abs(golden["logits"]).max() / STEPS
    assert 0 < errors.max() <= bundle.tolerances.max_logit_error / 2, errors.max() / step
    assert errors.mean() <= bundle.tolerances.mean_logit_error / 2, errors.mean() / step


def test_the_tolerances_of_int8_are_steps_of_the_logits(shipped: dict[str, list[Path]]) -> None:
    for folders in shipped.values():
        for folder in (one for one in folders if one.name.endswith("int8")):
            limits = Bundle.read(folder / "bundle.json").tolerances
            step = np.abs(np.load(folder / "golden.npz")["logits"]).max() / STEPS
            assert limits.max_logit_error == pytest.approx(15 * step, rel=0.02), folder.name
            assert limits.mean_logit_error == pytest.approx(2.5 * step, rel=0.03), folder.name
