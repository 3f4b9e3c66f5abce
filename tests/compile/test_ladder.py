"""The recovery ladder climbs as far as it must, and no further."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.backends.base.job import Compiled, Job, Recipe
from pipeline.backends.onnxruntime.compile import Compiler
from pipeline.backends.onnxruntime.spec import BACKEND
from pipeline.compile.ladder import Climbed, climb, find_rung
from pipeline.compile.params import Quantize
from pipeline.compile.sensitivity import most_sensitive
from pipeline.core.errors import PipelineError
from pipeline.data.answers import top1
from pipeline.export.evaluate import logits_of
from pipeline.export.onnx import export_onnx
from pipeline.networks.weights import load_pixels_to_logits, save_model
from tests.compile.conftest import SHIPPED

one_student = pytest.mark.parametrize("student", ["relu"], indirect=True)
"""How the ladder climbs does not depend on the student; what it mends does."""

Jobs = Callable[[str], Job]
Split = tuple[NDArray[np.uint8], NDArray[np.int64]]


def settings(*rungs: str) -> Quantize:
    return Quantize.model_validate(
        {
            "max_drop": 0.004,
            "rungs": ["default", *rungs],
            "float_layers": 4,
            "float_share": 1,
        }
    )


COMPILER = Compiler(SHIPPED.settings("onnxruntime"))


class Scripted:
    """Says what the artifacts reach on val, one after the other, and keeps what they hold."""

    def __init__(self, top1: Iterable[float], chance: float | None = 0.01) -> None:
        self._answers, self.chance = iter(top1), chance
        self.seen: list[bytes] = []

    def __call__(self, _job: Job, compiled: Compiled, folder: Path) -> tuple[float, float | None]:
        self.seen.append((folder / compiled.model_file).read_bytes())
        return next(self._answers), self.chance


def climbed(job: Job, folder: Path, rungs: tuple[str, ...], judge: Scripted) -> Climbed:
    return climb(COMPILER, job, settings(*rungs), 0.900, judge, folder)


@one_student
@pytest.mark.parametrize(("chance", "attempts"), [(0.06, 1), (0.04, 2)])
def test_a_loss_that_chance_explains_does_not_climb(
    chance: float, attempts: int, int8: Job, tmp_path: Path
) -> None:
    result = climbed(int8, tmp_path, ("ranges",), Scripted([0.80, 0.90], chance))
    assert len(result.attempts) == attempts
    assert result.attempts[0].val_chance == chance


@one_student
def test_a_default_that_is_good_enough_is_all_that_is_made(int8: Job, tmp_path: Path) -> None:
    judge = Scripted([0.897])
    result = climbed(int8, tmp_path, ("ranges", "float_layers"), judge)
    (attempt,) = result.attempts
    assert (attempt.rung, attempt.kept, attempt.failure) == ("default", True, None)
    assert attempt.val_top1 == 0.897 and attempt.val_drop == pytest.approx(0.003)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert attempt.size_bytes == (tmp_path / "model.onnx").stat().st_size


@one_student
def test_each_rung_starts_from_the_best_below_it(int8: Job, tmp_path: Path) -> None:
    judge = Scripted([0.80, 0.85, 0.84, 0.86, 0.899])
    result = climbed(int8, tmp_path, ("ranges", "bias_correction", "float_layers"), judge)
    wider, narrower = Compiler.ranges
    assert [attempt.rung for attempt in result.attempts] == [
        "default", "ranges", "ranges", "float_layers", "float_layers",
    ]  # fmt: skip
    assert result.job.recipe.ranges == wider != narrower
    assert len(result.job.recipe.float_layers) == 2
    assert [attempt.kept for attempt in result.attempts] == [False] * 4 + [True]
    assert (tmp_path / "model.onnx").read_bytes() == judge.seen[-1]
    assert len(set(judge.seen)) == 5


@pytest.mark.parametrize("share", [0.02, 0.2])
def test_no_more_of_the_network_stays_in_float_than_is_allowed(
    int8: Job, tmp_path: Path, share: float
) -> None:
    macs, weights = (sum(getattr(one, n) for one in int8.layers) for n in ("macs", "weights"))
    costs = {one.name: (one.macs / macs, one.weights / weights) for one in int8.layers}
    worst = most_sensitive(int8.weights, int8.calibration)
    limits = settings("float_layers").model_copy(update={"float_share": share})
    judge = Scripted([0.80, 0.85, 0.85, 0.85, 0.86])
    result = climb(COMPILER, int8, limits, 0.9, judge, tmp_path)
    kept = result.job.recipe.float_layers
    assert kept and all(sum(costs[name][i] for name in kept) <= share for i in (0, 1))
    assert result.compiled.execution.int8_mac_share >= 1 - share - 1e-9
    first = next(name for name in worst if max(costs[name]) <= share)
    assert kept[0] == first, "one that costs too much takes nobody's place"


@one_student
def test_no_layer_stays_in_float_where_none_may(int8: Job, tmp_path: Path) -> None:
    limits = settings("float_layers").model_copy(update={"float_share": 0})
    result = climb(COMPILER, int8, limits, 0.9, Scripted([0.8]), tmp_path)
    assert [attempt.rung for attempt in result.attempts] == ["default"]


@one_student
def test_the_best_stays_where_none_is_good_enough(int8: Job, tmp_path: Path) -> None:
    judge = Scripted([0.80, 0.85, 0.85])
    result = climbed(int8, tmp_path, ("ranges",), judge)
    assert [attempt.kept for attempt in result.attempts] == [False, True, False]
    assert (tmp_path / "model.onnx").read_bytes() == judge.seen[1]
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


class OnlyItsOwnRanges(Compiler):
    """A tool that fails with any other ranges."""

    def compile(self, job: Job, folder: Path) -> Compiled:
        if job.recipe.ranges:
            raise PipelineError(f"cannot do {job.recipe.ranges}")
        return super().compile(job, folder)


@one_student
def test_a_rung_that_fails_is_recorded_and_passed(int8: Job, tmp_path: Path) -> None:
    compiler = OnlyItsOwnRanges(SHIPPED.settings("onnxruntime"))
    limits = settings("ranges", "float_layers")
    judge = Scripted([0.8, 0.9])
    result = climb(compiler, int8, limits, 0.9, judge, tmp_path)
    failures = [attempt.failure for attempt in result.attempts]
    assert failures == [None, *(f"cannot do {ranges}" for ranges in Compiler.ranges), None]
    with pytest.raises(PipelineError, match="cannot do"):
        odd = replace(int8, recipe=Recipe(ranges="percentile 99"))
        climb(compiler, odd, limits, 0.9, judge, tmp_path)


class Breaks(Compiler):
    """A tool that fails with any other ranges by an error of its own."""

    def compile(self, job: Job, folder: Path) -> Compiled:
        compiled = super().compile(job, folder)
        if job.recipe.ranges:
            raise self.error
        return compiled

    error: Exception


@one_student
@pytest.mark.parametrize(
    "error", [ValueError("nan in scale\nand more"), RuntimeError(), OSError(28)]
)
def test_a_tool_that_breaks_in_a_later_rung_leaves_the_sound_artifact(
    int8: Job, tmp_path: Path, error: Exception
) -> None:
    compiler = Breaks(SHIPPED.settings("onnxruntime"))
    compiler.error = error
    judge = Scripted([0.8])
    if isinstance(error, OSError):  # a full disk is no property of the rung
        with pytest.raises(OSError, match="28"):
            climb(compiler, int8, settings("ranges"), 0.9, judge, tmp_path)
        return
    result = climb(compiler, int8, settings("ranges"), 0.9, judge, tmp_path)
    first, *failed = result.attempts
    assert first.kept and (tmp_path / "model.onnx").read_bytes() == judge.seen[0]
    told = {"ValueError: nan in scale", "RuntimeError: "}
    assert len(failed) == 2 and {attempt.failure for attempt in failed} <= told


@one_student
def test_an_unknown_rung_is_named_with_the_nearest_one_before_anything_is_compiled(
    int8: Job, tmp_path: Path
) -> None:
    complaint = "no `biascorrection` among the rungs; did you mean `bias_correction`"
    with pytest.raises(PipelineError, match=complaint):
        find_rung("biascorrection")
    with pytest.raises(PipelineError, match=complaint):
        climbed(int8, tmp_path, ("biascorrection",), Scripted([]))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def hard(int8: Job, tmp_path: Path) -> Job:
    """The same function in float; but one channel of a linear bottleneck is 250 times as large.

    Ranges per tensor leave the channels beside it a few levels.
    """
    model, card = load_pixels_to_logits(int8.weights)
    modules = dict(model.network.named_modules())
    with torch.no_grad():
        norm = modules["blocks.1.0.bn2"]
        norm.weight[0] *= 250
        norm.bias[0] *= 250
        modules["blocks.2.0.conv_exp"].weight[:, 0] /= 250
    folder = tmp_path / "hard"
    folder.mkdir()
    save_model(folder, model.network, card)
    export_onnx(*load_pixels_to_logits(folder), opset=20, file=folder / "model.onnx")
    return replace(int8, weights=folder, onnx=folder / "model.onnx")


def test_it_recovers_a_student_that_is_hard_on_purpose(
    hard: Job, test_images: Split, tmp_path: Path, torch_logits: NDArray[np.float32]
) -> None:
    images, labels = test_images

    def judge(_job: Job, compiled: Compiled, folder: Path) -> tuple[float, float | None]:
        runner = BACKEND.load(folder / compiled.model_file, 1)
        return top1(logits_of(runner, images), labels), 0.0

    (tmp_path / "made").mkdir()
    known = top1(torch_logits, labels)
    rungs = settings("ranges", "float_layers")
    result = climb(COMPILER, hard, rungs, known, judge, tmp_path / "made")
    first = result.attempts[0].val_drop
    kept = next(attempt for attempt in result.attempts if attempt.kept)
    assert first is not None and first > 0.02
    assert kept.val_drop is not None and kept.val_drop <= 0.005


def test_the_layer_that_reads_uneven_channels_is_the_most_sensitive(hard: Job) -> None:
    found = most_sensitive(hard.weights, hard.calibration)
    assert found[0] == "blocks.2.0.conv_exp"
    assert sorted(found) == sorted(layer.name for layer in hard.layers)
