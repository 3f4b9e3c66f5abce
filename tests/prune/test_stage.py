"""The stage `prune` on real images: what it writes, what it refuses, that it resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cli.check import check
from pipeline.cli.params import Params
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.export.onnx import export_student
from pipeline.networks.inference import evaluate, predict
from pipeline.networks.records import PRUNED, STUDENTS, Layers, ModelCard
from pipeline.networks.shipped import shipped
from pipeline.networks.weights import load_pixels_to_logits
from pipeline.prune import student as stage
from pipeline.prune.records import PLANS, PRUNING, Pruning
from pipeline.prune.student import prune_student
from pipeline.training.checkpoints import CHECKPOINTS
from pipeline.training.records import ModelMetrics
from tests.prune.conftest import STUDENT, write_params
from tests.training.conftest import stopped_after

FOLDER, WEIGHTS = PRUNED / STUDENT, PRUNED / STUDENT / "model.safetensors"


def test_a_pruned_student_is_written_as_what_it_is_and_a_stopped_run_ends_the_same(
    project: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = project()
    check(params)
    prune_student(params, STUDENT)
    its, card = Pruning.read(FOLDER / PRUNING), ModelCard.read_beside(FOLDER)
    assert its.reached == its.macs / its.macs_before and 0.54 < its.reached <= 0.6
    assert [step.share for step in its.steps] == [pytest.approx(0.6**0.5, abs=0.05), its.reached]
    assert its.fixed == ("classifier",) and its.weights < its.weights_before
    assert card.parameters < ModelCard.read_beside(STUDENTS / STUDENT).parameters
    assert card.shapes is not None and card.int8_phase > 0
    widths = [shape[0] for name, shape in card.shapes.tensors.items() if name.endswith("v.weight")]
    assert widths and not [width for width in widths if width % 8]

    home = shipped(STUDENT, params.prune.enabled)
    metrics = ModelMetrics.read(home.metrics)
    assert home.folder == FOLDER and len(metrics.curve(home.curves)) == 1
    model, _ = load_pixels_to_logits(FOLDER)
    images, labels = (np.load(f"data/packed/test_{part}.npy") for part in ("images", "labels"))
    assert evaluate(model, images, labels)[1] == metrics.top1 == its.top1
    before, _ = load_pixels_to_logits(STUDENTS / STUDENT)
    right = [predict(one, images).numpy().argmax(1) == labels for one in (before, model)]
    assert (its.lost, its.won) == ((right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum())

    export_student(STUDENT, params.export.opset, params.prune.enabled)
    layers = Layers.read(Path(f"models/onnx/{STUDENT}/layers.json")).layers
    assert sum(layer.macs for layer in layers) == its.macs

    assert not list(PLANS.glob("*")) and not list(CHECKPOINTS.glob("*"))
    expected = sha256(WEIGHTS)
    with stopped_after(9):  # in the last stretch: each epoch has six steps
        prune_student(params, STUDENT)
    monkeypatch.setattr(stage, "fisher", None)  # it has chosen its channels, and does not again
    prune_student(params, STUDENT)
    assert sha256(WEIGHTS) == expected


@pytest.mark.slow
def test_a_size_is_measured_on_its_backend(project: Callable[..., Params]) -> None:
    goal = {"kb": 0.5, "backend": "onnxruntime", "precision": "fp32"}
    params = project(to=goal, step_epochs=0, epochs=0, importance="magnitude")
    prune_student(params, STUDENT)
    its = Pruning.read(FOLDER / PRUNING)
    assert its.measured is not None and its.measured.p50_ms is None
    assert its.reached == its.measured.kb / its.measured.kb_before
    assert 0.4 < its.reached <= 0.5
    assert its.weights / its.weights_before == pytest.approx(its.reached, abs=0.1)


@pytest.mark.slow
def test_a_latency_is_measured_beside_the_unpruned_student(project: Callable[..., Params]) -> None:
    goal = {"p50": 0.95, "backend": "onnxruntime", "precision": "fp32"}
    params = project(to=goal, steps=1, epochs=0, min_share=0.0)
    prune_student(params, STUDENT)
    its = Pruning.read(FOLDER / PRUNING).measured
    assert its is not None and its.p50_share is not None and its.p50_share <= 0.95
    assert its.p50_ms is not None and its.p50_ms_before is not None
    assert its.p50_share_interval is not None


def test_a_goal_that_the_rules_do_not_allow_says_how_far_it_got(
    project: Callable[..., Params],
) -> None:
    params = project(to={"macs": 0.1}, min_share=0.6, steps=1)
    with pytest.raises(PipelineError, match=r"10% of its MACs cannot be reached: \d\d\.\d% are"):
        prune_student(params, STUDENT)
    assert not FOLDER.exists()


MEASURED = {"p50": 0.5, "backend": "tflite", "precision": "int8"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"to": {"macs": 1.0}}, "prune.to.macs: input should be less than 1"),
        ({"to": {"macs": 0}}, "prune.to.macs: input should be greater than 0"),
        ({"to": {}}, "exactly one of `macs`, `p50` and `kb`"),
        ({"to": {"kb": 0.5}}, "name both"),
        ({"to": {"macs": 0.5, "backend": "tflite"}}, "leave out `backend`"),
        ({"to": MEASURED | {"backend": "tflit"}}, "`tflit`, which backends.enabled does not have"),
        ({"to": MEASURED | {"backend": "executorch"}}, "backends.enabled does not have"),
        ({"to": MEASURED | {"precision": "int4"}}, "backends.tflite has fp32, fp16, int8"),
        ({"enabled": ["mnv5"]}, "prune.enabled names `mnv5`, which students.enabled does not have"),
        ({"enabled": ["../x"]}, "prune.enabled.0: a name has"),
        ({"step": 3}, "prune.step: unknown key; did you mean `steps`?"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_mistakes_are_told_before_anything_runs(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PipelineError) as error:
        write_params(**changes)
    assert said in str(error.value)
