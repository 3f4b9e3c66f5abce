"""The stage on real networks: what it records, what it checks, and on other data than it is for."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from pipeline.attribution.attribute import attribute
from pipeline.attribution.examples import KINDS, Examples
from pipeline.attribution.params import Attribution, AttributionParams
from pipeline.attribution.records import AttributionRecord, Explained, record_file
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.onnxruntime.spec import OnnxRuntime
from pipeline.compile.untrained import Shape
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.core.params import load
from stages.attribution import main
from tests.attribution.conftest import MASTER, PUPIL, write_params
from tests.sharing import describe

FP32, INT8 = (Artifact(PUPIL, "onnxruntime", precision).key for precision in ("fp32", "int8"))
CNN = {"arch": "test_resnet", "args": {}}


@pytest.fixture(scope="module")
def record(trained: Path) -> AttributionRecord:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        attribute(load(AttributionParams), PUPIL)
        return AttributionRecord.read(record_file(PUPIL))


def pearson_of(its: Explained | None) -> float:
    assert its and its.occlusion and its.occlusion.pearson
    return its.occlusion.pearson.mean


def test_the_float_artifact_looks_where_torch_looks_and_int8_nearly_so(
    record: AttributionRecord,
) -> None:
    assert pearson_of(record.artifact(FP32)) > 0.9999
    assert 0.8 < pearson_of(record.artifact(INT8)) < 0.9999
    assert record.int8_pearson == pearson_of(record.artifact(INT8))


def test_maps_of_random_weights_agree_far_less_and_the_record_says_so(
    record: AttributionRecord,
) -> None:
    occlusion, cam = record.sanity
    assert len(occlusion.random) == 3 and (occlusion.kind, cam.kind) == ("occlusion", "Grad-CAM")
    assert {FP32, INT8} <= set(occlusion.separated)
    assert record.random_pearson is not None and record.random_pearson < 0.5
    assert set(cam.separated) | set(cam.mixed_up) == {f"teacher {MASTER}"}


def test_maps_of_networks_that_learned_are_better_than_random_ones(
    record: AttributionRecord,
) -> None:
    for its in record.networks:
        kinds = [curve.map for curve in its.curves]
        assert kinds == (["occlusion"] if its.kind == "artifact" else ["occlusion", "Grad-CAM"])
        assert its.curves[0].better_than_random, its.name


def test_teacher_and_student_are_compared_on_the_same_kind_of_map(
    record: AttributionRecord,
) -> None:
    teacher, student = record.networks[:2]
    assert (teacher.kind, student.kind) == ("teacher", "student")
    assert teacher.occlusion and teacher.gradcam and teacher.gradcam_layer
    assert student.occlusion is None and student.answered_alike == 1


def test_the_maps_are_on_disk_with_their_digests_and_the_examples_among_them(
    record: AttributionRecord, trained: Path
) -> None:
    folder = trained / "models/attribution" / PUPIL
    assert {name: sha256(folder / name) for name, _ in record.digests} == dict(record.digests)
    with np.load(folder / "maps.npz") as arrays:
        maps = arrays[f"occlusion/{INT8}"]
        assert maps.shape == (record.images, 8, 8) and maps.dtype == np.float32
        places = arrays["places"].tolist()
    examples = Examples.read(folder / "examples.npz", dict(record.digests)["examples.npz"])
    assert examples.names.tolist() == [f"teacher {MASTER}", f"student {PUPIL}", INT8]
    row = places.index(examples.places[0])
    assert (examples.maps[0, 2] == maps[row]).all()
    images = np.load(trained / "data/packed/test_images.npy")
    assert (examples.images[0] == images[examples.places[0]]).all()
    assert set(examples.kinds) <= set(KINDS)


def test_no_figure_of_a_record_is_nan(record: AttributionRecord, trained: Path) -> None:
    text = (trained / record_file(PUPIL)).read_text()
    assert "NaN" not in text and "Infinity" not in text
    int8 = record.artifact(INT8)
    assert int8 and int8.occlusion
    values = int8.correlations()
    assert len(values) == record.images == 40
    assert np.nanmean(values) == pytest.approx(pearson_of(int8), abs=1e-3)


def test_the_same_params_give_the_same_bits(project: AttributionParams) -> None:
    params = AttributionParams.model_validate(
        project.model_dump() | {"attribution": project.attribution.model_dump() | {"images": 6}}
    )
    first, second = (attribute(params, PUPIL).model_copy(update={"minutes": 0}) for _ in "ab")
    assert first == second


@pytest.mark.usefixtures("project")
def test_an_artifact_that_cannot_run_has_a_status_and_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OnnxRuntime, "evaluator", lambda _: None)
    monkeypatch.setattr(OnnxRuntime, "unmeasurable", lambda _: "no such processor here")
    params = write_params(images=4, grid=4)
    record = attribute(params, PUPIL)
    for key in (FP32, INT8):
        its = record.artifact(key)
        assert its and its.status == "not_computed" and its.occlusion is None
        assert its.reason == "cannot run here: no such processor here"
    assert record.int8_pearson is None


@pytest.mark.usefixtures("project")
def test_an_artifact_that_does_not_open_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("engine of another GPU")

    monkeypatch.setattr(OnnxRuntime, "open", refuse)
    its = attribute(write_params(images=4, grid=4), PUPIL).artifact(INT8)
    assert its and its.status == "failed" and "engine of another GPU" in (its.reason or "")


@pytest.mark.parametrize(
    ("shape", "student", "teacher", "tokens"),
    [
        (Shape(28, 1, 2), CNN, {"arch": "test_vit", "args": {"img_size": 28, "patch_size": 7}}, 17),
        pytest.param(
            Shape(64, 3, 5),
            CNN,
            {"arch": "test_convnext", "args": {}},
            None,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            Shape(224, 3, 3),
            {"arch": "mobilenetv3_small_050", "args": {}},
            CNN,
            None,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["grey-two-classes-vit", "colour-convnext", "photos-mobilenet"],
)
def test_other_data_and_networks(
    shape: Shape,
    student: dict[str, Any],
    teacher: dict[str, Any],
    tokens: int | None,
    untrained_project: Callable[..., AttributionParams],
) -> None:
    record = attribute(untrained_project(shape, student, teacher, images=6, grid=4), PUPIL)
    assert record.images == 6
    its = record.networks[0]
    assert its.occlusion and its.occlusion.images + its.occlusion.undefined == 6
    if tokens:
        assert its.gradcam is None and its.gradcam_layer is None
        assert its.gradcam_reason and f"are {tokens} tokens and no map" in its.gradcam_reason
    else:
        assert its.gradcam and its.gradcam_layer


@pytest.mark.usefixtures("project")
def test_constant_images_have_maps_that_are_counted_and_not_compared() -> None:
    """Every image is the mean train image, so that hiding a patch changes nothing."""
    np.save("data/packed/test_images.npy", np.full((120, 28, 28, 3), 99, np.uint8))
    np.save("data/calibration/images.npy", np.full((8, 28, 28, 3), 99, np.uint8))
    describe()
    record = attribute(write_params(images=6, grid=4), PUPIL)
    for its in record.networks:
        assert its.constant == 6
    int8 = record.artifact(INT8)
    assert int8 and int8.occlusion
    assert (int8.occlusion.images, int8.occlusion.undefined) == (0, 6)
    assert int8.occlusion.pearson is None and np.isnan(int8.correlations()).all()
    assert record.sanity[0].separated == () and FP32 in record.sanity[0].mixed_up


@pytest.mark.usefixtures("project")
def test_by_hand_an_unknown_student_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["attribution", "--student", "pupi"])
    with pytest.raises(PipelineError, match="no student `pupi`; did you mean `pupil`"):
        main()


@pytest.mark.usefixtures("project")
def test_params_that_ask_for_a_student_that_is_not_made_are_refused() -> None:
    with pytest.raises(PipelineError, match=r"`attribution.enabled` names `pupi`"):
        write_params(enabled=["pupi"])


def test_without_artifacts_the_stage_says_so(project: AttributionParams) -> None:
    for key in (FP32, INT8):
        (Artifact.parse(key).folder / "artifact.json").unlink()
    with pytest.raises(PipelineError, match="no artifact of `pupil` is compiled"):
        attribute(project, PUPIL)


def test_without_captum_the_error_names_the_extra(
    project: AttributionParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PipelineError, match="captum") as caught:
        attribute(project, PUPIL)
    assert ".[explain]" in str(caught.value)


@pytest.mark.usefixtures("project")
def test_a_patch_as_large_as_the_image_is_refused() -> None:
    with pytest.raises(PipelineError, match="a patch of 28 pixels has 1 positions"):
        attribute(write_params(patch=1.0), PUPIL)
    with pytest.raises(PipelineError, match=r"attribution.patch: input should be less than"):
        write_params(patch=1.5)


def test_patches_that_leave_gaps_are_refused() -> None:
    with pytest.raises(ValidationError, match="do not cover it"):
        Attribution(grid=4, patch=0.2)
    assert Attribution(grid=4, patch=0.25).enabled == ()


def test_nothing_is_asked_for_by_default() -> None:
    tree = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    assert tree["attribution"] == Attribution().model_dump() | {"enabled": []}
