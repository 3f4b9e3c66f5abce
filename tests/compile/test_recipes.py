"""Every backend does what a rung of the ladder asks of it, and its runtime executes it so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.backends.base.job import Compiled, Job, Recipe
from pipeline.backends.base.registry import backend, backend_names
from pipeline.core.files import sha256
from pipeline.data.answers import agreement
from tests.compile.conftest import compiler

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]

KEPT = ("blocks.3.0.conv_pw", "blocks.4.0.conv_dw")


def recipes(name: str) -> list[Recipe]:
    its = compiler(name)
    found = [Recipe(), *(Recipe(ranges=ranges) for ranges in its.ranges)]
    found += [Recipe(bias_correction=True)] if its.bias_correction else []
    return [*found, Recipe(float_layers=KEPT)]


def macs(compiled: Compiled) -> dict[str, int]:
    return {layer.name: layer.macs for layer in compiled.execution.in_float}


@pytest.mark.parametrize("student", ["relu"], indirect=True)
@pytest.mark.parametrize("name", backend_names())
def test_every_recipe_makes_another_artifact_that_still_knows_its_classes(
    name: str, int8: Job, test_images: Split, torch_logits: NDArray[np.float32], tmp_path: Path
) -> None:
    made = {}
    for number, recipe in enumerate(recipes(name)):
        folder = tmp_path / str(number)
        folder.mkdir()
        compiled = compiler(name).compile(replace(int8, recipe=recipe), folder)
        logits = backend(name).load(folder / compiled.model_file, 1)(test_images[0])
        assert agreement(logits, torch_logits) > 0.97, recipe
        digest = tuple(sha256(file) for file in sorted(folder.iterdir()))
        made[digest] = compiled
    assert len(made) == len(recipes(name))
    plain, *_, mixed = made.values()
    assert plain.kept_float == () and len(mixed.kept_float) == len(KEPT)
    assert set(macs(mixed)) - set(macs(plain)) == set(mixed.kept_float)
