"""The recovery ladder climbs as far as it must, and no further."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.accuracy.metrics import (
    top1,
)
from pipeline.backends.base.job import Compiled, Job, Recipe
from pipeline.backends.onnxruntime.spec import OnnxRuntime
from pipeline.compile.ladder import Climbed, climb
from pipeline.core.errors import PipelineError
from pipeline.export.evaluate import logits_of
from pipeline.export.onnx import export_onnx
from pipeline.int8.params import Quantize
from pipeline.int8.sensitivity import most_sensitive
from pipeline.networks.weights import load_pixels_to_logits, save_model

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
            "training": {"epochs": 1, "lr": 0.001},
        }
    )


def no_training(_job: Job) -> Job:
    raise AssertionError("there was no need to train")


class Scripted:
    """Says what the artifacts reach on val, one after the other, and keeps what they hold."""

    def __init__(self, top1: Iterable[float]) -> None:
        self._answers = iter(top1)
        self.seen: list[bytes] = []

    def __call__(self, _job: Job, compiled: Compiled, folder: Path) -> float:
        self.seen.append((folder / compiled.model_file).read_bytes())
        return next(self._answers)


def climbed(job: Job, folder: Path, rungs: tuple[str, ...], judge: Scripted) -> Climbed:
    return climb(OnnxRuntime(), job, settings(*rungs), 0.900, judge, no_training, folder)


@one_student
def test_a_default_that_is_good_enough_is_all_that_is_made(int8: Job, tmp_path: Path) -> None:
    judge = Scripted([0.897])
    result = climbed(int8, tmp_path, ("ranges", "training"), judge)
    (attempt,) = result.attempts
    assert (attempt.rung, attempt.kept, attempt.failure) == ("default", True, None)
    assert attempt.val_top1 == 0.897 and attempt.val_drop == pytest.approx(0.003)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert attempt.size_bytes == (tmp_path / "model.onnx").stat().st_size


@one_student
def test_each_rung_starts_from_the_best_below_it(int8: Job, tmp_path: Path) -> None:
    judge = Scripted([0.80, 0.85, 0.84, 0.86, 0.899])
    result = climbed(int8, tmp_path, ("ranges", "bias_correction", "float_layers"), judge)
    wider, narrower = OnnxRuntime.ranges
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
    worst = most_sensitive(int8)
    limits = settings("float_layers").model_copy(update={"float_share": share})
    judge = Scripted([0.80, 0.85, 0.85, 0.85, 0.86])
    result = climb(OnnxRuntime(), int8, limits, 0.9, judge, no_training, tmp_path)
    kept = result.job.recipe.float_layers
    assert kept and all(sum(costs[name][i] for name in kept) <= share for i in (0, 1))
    assert result.compiled.execution.int8_mac_share >= 1 - share - 1e-9
    first = next(name for name in worst if max(costs[name]) <= share)
    assert kept[0] == first, "one that costs too much takes nobody's place"


@one_student
def test_no_layer_stays_in_float_where_none_may(int8: Job, tmp_path: Path) -> None:
    limits = settings("float_layers").model_copy(update={"float_share": 0})
    result = climb(OnnxRuntime(), int8, limits, 0.9, Scripted([0.8]), no_training, tmp_path)
    assert [attempt.rung for attempt in result.attempts] == ["default"]


@one_student
def test_the_best_stays_where_none_is_good_enough(int8: Job, tmp_path: Path) -> None:
    judge = Scripted([0.80, 0.85, 0.85])
    result = climbed(int8, tmp_path, ("ranges",), judge)
    assert [attempt.kept for attempt in result.attempts] == [False, True, False]
    assert (tmp_path / "model.onnx").read_bytes() == judge.seen[1]
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


class OnlyItsOwnRanges(OnnxRuntime):
    """A tool that fails with any other ranges."""

    def compile(self, job: Job, folder: Path) -> Compiled:
        if job.recipe.ranges:
            raise PipelineError(f"cannot do {job.recipe.ranges}")
        return super().compile(job, folder)


@one_student
def test_a_rung_that_fails_is_recorded_and_passed(int8: Job, tmp_path: Path) -> None:
    backend, limits = OnlyItsOwnRanges(), settings("ranges", "float_layers")
    judge = Scripted([0.8, 0.9])
    result = climb(backend, int8, limits, 0.9, judge, no_training, tmp_path)
    failures = [attempt.failure for attempt in result.attempts]
    assert failures == [None, *(f"cannot do {ranges}" for ranges in OnnxRuntime.ranges), None]
    with pytest.raises(PipelineError, match="cannot do"):
        odd = replace(int8, recipe=Recipe(ranges="percentile 99"))
        climb(backend, odd, limits, 0.9, judge, no_training, tmp_path)


@one_student
def test_training_comes_last_and_brings_other_weights(int8: Job, tmp_path: Path) -> None:
    trained = replace(int8, student="trained")
    result = climb(
        OnnxRuntime(), int8, settings("ranges", "training"), 0.9,
        Scripted([0.8, 0.7, 0.81, 0.82, 0.899]), lambda _: trained, tmp_path,
    )  # fmt: skip
    assert result.job.student == "trained"
    assert [attempt.rung for attempt in result.attempts][-2:] == ["training", "training"]


@pytest.fixture
def hard(int8: Job, tmp_path: Path) -> Job:
    """The same function in float; but one channel of a linear bottleneck is 250 times as large.

    Ranges per tensor leave the channels beside it a few levels.
    """
    model, card = load_pixels_to_logits(int8.student_folder)
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
    return replace(int8, student_folder=folder, onnx=folder / "model.onnx")


def test_it_recovers_a_student_that_is_hard_on_purpose(
    hard: Job, test_images: Split, tmp_path: Path, torch_logits: NDArray[np.float32]
) -> None:
    images, labels = test_images

    def judge(_job: Job, compiled: Compiled, folder: Path) -> float:
        runner = OnnxRuntime().load(folder / compiled.model_file, 1)
        return top1(logits_of(runner, images), labels)

    (tmp_path / "made").mkdir()
    known = top1(torch_logits, labels)
    rungs = settings("ranges", "float_layers")
    result = climb(OnnxRuntime(), hard, rungs, known, judge, no_training, tmp_path / "made")
    first = result.attempts[0].val_drop
    kept = next(attempt for attempt in result.attempts if attempt.kept)
    assert first is not None and first > 0.02
    assert kept.val_drop is not None and kept.val_drop <= 0.005


def test_the_layer_that_reads_uneven_channels_is_the_most_sensitive(hard: Job) -> None:
    assert most_sensitive(hard)[0] == "blocks.2.0.conv_exp"
    assert sorted(most_sensitive(hard)) == sorted(layer.name for layer in hard.layers)
