"""The weights of the stage `quantize_aware`, which lose less by int8's rounding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pipeline.backends.base.job import Job, Recipe
from pipeline.compile.rungs.base import Situation
from pipeline.int8.records import trained_weights


def candidates(situation: Situation) -> Iterator[Job]:
    """These weights with the plain recipe, then with the recipe of the best job so far."""
    plain, best = situation.plain, situation.best
    folder = trained_weights(plain.artifact.student)
    trained = replace(plain, onnx=folder / "model.onnx", weights=folder, recipe=Recipe())
    yield trained
    if best.recipe != trained.recipe:
        yield replace(trained, recipe=best.recipe)
