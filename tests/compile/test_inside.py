"""Noise by layer and the exact input, through every runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from pipeline.backends.base.job import Job
from pipeline.backends.base.registry import backend, backend_names
from pipeline.compile.inside import Inside, layer_noise, look_inside, power
from pipeline.core.errors import PipelineError
from tests.compile.conftest import compiler

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]
Look = Callable[[str, Job, Path], Inside]


@pytest.fixture
def int8(job: Callable[[str], Job]) -> Job:
    return job("int8")


@pytest.fixture
def look(test_images: Split) -> Look:
    def inside(name: str, made: Job, model: Path) -> Inside:
        return look_inside(backend(name), compiler(name), made, model, test_images[0])

    return inside


def compiled(name: str, made: Job, folder: Path) -> Path:
    folder.mkdir()
    return folder / compiler(name).compile(made, folder).model_file


def decibels(inside: Inside) -> dict[str, float]:
    return {layer.name: np.inf if layer.snr_db is None else layer.snr_db for layer in inside.layers}


@pytest.mark.parametrize("name", backend_names())
def test_every_layer_is_compared_and_the_input_is_exact(
    look: Look, name: str, int8: Job, tmp_path: Path
) -> None:
    inside = look(name, int8, compiled(name, int8, tmp_path / "made"))
    assert inside.exact_input_images == 33  # 32 real ones, and one with every value
    found = decibels(inside)
    assert list(found) == [layer.name for layer in int8.layers] and inside.notes == ()
    assert min(found.values()) > 5 and max(found.values()) < 60


@pytest.mark.parametrize("student", ["relu"], indirect=True)
@pytest.mark.parametrize("name", backend_names())
def test_layers_that_stay_in_float_add_no_noise(
    look: Look, name: str, int8: Job, tmp_path: Path
) -> None:
    first = tuple(layer.name for layer in int8.layers[:2])
    recipe = replace(int8.recipe, float_layers=first)
    made = compiled(name, replace(int8, recipe=recipe), tmp_path / "mixed")
    mixed = decibels(look(name, int8, made))
    plain = compiled(name, int8, tmp_path / "plain")
    before = decibels(look(name, int8, plain))
    assert mixed[first[0]] > before[first[0]] + 10


@pytest.mark.parametrize("student", ["relu"], indirect=True)
def test_a_graph_that_rounds_its_pixels_is_refused(look: Look, int8: Job, tmp_path: Path) -> None:
    made = compiled("onnxruntime", int8, tmp_path / "made")
    model = onnx.load(made)
    (pixels,) = (node.output[0] for node in model.graph.node if node.op_type == "Transpose")
    scale = next(node.input[1] for node in model.graph.node if pixels in node.input)
    for tensor in model.graph.initializer:
        if tensor.name == scale:
            wrong = np.array(1 / 50, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wrong, scale))
    onnx.save(model, made)
    with pytest.raises(PipelineError, match="pixels are not its int8 input"):
        look("onnxruntime", int8, made)


@pytest.mark.parametrize("student", ["relu"], indirect=True)
def test_other_numbers_of_layers_are_told_not_guessed(
    look: Look, int8: Job, tmp_path: Path
) -> None:
    made = compiled("onnxruntime", int8, tmp_path / "made")
    fewer = replace(int8, layers=int8.layers[1:])
    inside = look("onnxruntime", fewer, made)
    assert inside.layers == () and "noise by layer is not known" in inside.notes[0]


def test_noise_of_layers_is_the_ratio_of_powers() -> None:
    reference = np.full((3, 4), 2.0, np.float32)
    pairs = [(reference + 0.2, reference), (reference, reference), (reference, 0 * reference)]
    first, exact, dead = layer_noise(("a", "b", "c"), np.array([power(*pair) for pair in pairs]))
    assert first.name == "a" and first.snr_db == pytest.approx(20, abs=0.01)
    assert exact.snr_db is None
    assert dead.snr_db is not None and dead.snr_db < -300
