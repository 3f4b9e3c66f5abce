"""The stage on compiled artifacts, in their runtimes: what it records, and what it refuses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline.backends.base.artifact import COMPILED
from pipeline.backends.base.registry import backend
from pipeline.cli.check import check_settings
from pipeline.cli.params import load_params
from pipeline.core.errors import PipelineError
from pipeline.core.params import load
from pipeline.data.answers import correct
from pipeline.data.records import load_split
from pipeline.networks.inference import predict
from pipeline.networks.records import STUDENTS, TEACHERS, WEIGHTS
from pipeline.networks.weights import load_pixels_to_logits
from pipeline.robustness import autoattack
from pipeline.robustness.adversarial import Attacker
from pipeline.robustness.autoattack import attacks_for
from pipeline.robustness.corruptions import CORRUPTIONS, corrupt
from pipeline.robustness.measure import draw, measure
from pipeline.robustness.params import Attack, RobustnessParams
from pipeline.robustness.records import (
    AUTOATTACK,
    FGSM,
    PGD,
    RobustnessRecord,
    packed,
    record_file,
    unpacked,
)
from stages.robustness import main
from tests.robustness.conftest import STUDENT, TEACHER, Make, artifact, set_params

ROOT = Path(__file__).parents[2]
FP32 = artifact("onnxruntime", "fp32").key


def test_a_compiled_student_is_measured_as_its_float_one(project: Make) -> None:
    params = project()
    record = measure(params, STUDENT)
    assert RobustnessRecord.read(record_file(STUDENT)) == record
    assert (record.images, record.of_images) == (40, 60)
    row = record.artifacts[FP32]
    assert row.measured == record.student and row.status == "measured"
    half = record.artifacts[artifact("tensorrt", "fp16").key]
    assert half.measured is not None and half.evaluated_with == backend("tensorrt").evaluator()
    assert abs(half.measured.mean_corrupted.value - record.student.mean_corrupted.value) < 0.03
    assert record.student.clean > 0.9 and record.student.clean == half.measured.clean
    assert record.teachers[TEACHER].clean < 0.4


def test_the_figures_are_those_of_the_networks_answers(project: Make) -> None:
    record = measure(project(), STUDENT)
    images, labels = load_split("test")
    numbers = draw(60, 40, 17)
    model, _ = load_pixels_to_logits(STUDENTS / STUDENT)
    teacher, _ = load_pixels_to_logits(TEACHERS / TEACHER)
    right = np.zeros(40, int)
    ratios = []
    for name in CORRUPTIONS:
        wrong = {STUDENT: 0, TEACHER: 0}
        for strength, recorded in zip((1, 5), record.student.corrupted[name], strict=True):
            some = corrupt(name, images[numbers], strength, seed=17, numbers=numbers)
            own = correct(predict(model, some).numpy(), labels[numbers])
            its = correct(predict(teacher, some).numpy(), labels[numbers])
            assert recorded == pytest.approx(own.mean())
            right += own
            wrong[STUDENT] += int((~own).sum())
            wrong[TEACHER] += int((~its).sum())
        ratios.append(wrong[STUDENT] / wrong[TEACHER])
    assert np.array_equal(unpacked(record.student.right, 40), right)
    assert record.student.mean_corrupted.value == pytest.approx(right.mean() / 16)
    mce = record.student.mce[TEACHER]
    assert mce is not None and mce.value == pytest.approx(np.mean(ratios))
    assert mce.interval is not None and mce.interval[0] < mce.value < mce.interval[1]


def test_equal_params_give_equal_bits_and_other_seeds_other_images(project: Make) -> None:
    params = project()
    measure(params, STUDENT)
    first = record_file(STUDENT).read_bytes()
    measure(params, STUDENT)
    assert record_file(STUDENT).read_bytes() == first
    other = measure(set_params(seed=18), STUDENT)
    assert other.student.right != RobustnessRecord.parse(first, "first").student.right
    assert not np.array_equal(draw(60, 40, 17), draw(60, 40, 18))
    assert np.array_equal(draw(60, None, 17), draw(60, 100, 17))


def attacked(name: str, settings: Attack) -> tuple[np.ndarray, np.ndarray, float]:
    """Original and adversarial images of the trained student, and its accuracy on the latter."""
    model, _ = load_pixels_to_logits(STUDENTS / STUDENT)
    images, labels = load_split("test")
    state = torch.random.get_rng_state()
    made = Attacker(model, settings, 3).attack(name, images[:40], labels[:40])
    assert torch.equal(torch.random.get_rng_state(), state)
    right = correct(predict(model, made.images).numpy(), labels[:40])
    return images[:40], made.images, float(right.mean())


def test_pgd_is_stronger_than_fgsm_and_restarts_make_it_no_weaker(project: Make) -> None:
    project()
    settings = Attack(epsilon=6, steps=10, step_size=1.5)
    accuracies = []
    for name, its in (
        (FGSM, settings),
        (PGD, settings),
        (PGD, settings.model_copy(update={"restarts": 4})),
    ):
        images, made, accuracy = attacked(name, its)
        assert made.dtype == np.uint8
        assert np.abs(made.astype(int) - images).max() == 6
        accuracies.append(accuracy)
    assert 0.9 > accuracies[0] >= accuracies[1] >= accuracies[2]


def test_the_attacks_on_a_robust_student_are_transferred_to_its_artifacts(project: Make) -> None:
    params = project()
    record = measure(params, STUDENT)
    row = record.artifacts[FP32].measured
    assert row is not None and row.attacked == record.student.attacked
    assert record.student.attacked[PGD] < record.student.clean
    withstood = unpacked(record.student.withstood, 40)
    assert withstood.mean() == pytest.approx(record.student.attacked[PGD])


@pytest.mark.parametrize(
    ("size", "channels", "classes"),
    [(28, 1, 5), (32, 3, 2), pytest.param(64, 3, 4, marks=pytest.mark.slow)],
)
def test_other_sizes_channels_and_classes_are_measured(
    project: Make, size: int, channels: int, classes: int
) -> None:
    project(size, channels, classes, onnxruntime=["fp32"])
    params = set_params(robustness={"images": 10, "strengths": [5]})
    record = measure(params, STUDENT)
    assert record.artifacts[FP32].measured == record.student


@pytest.mark.slow
def test_every_backend_that_is_installed_is_measured(project: Make) -> None:
    params = project(
        32,
        3,
        2,
        onnxruntime=["fp32", "int8"],
        openvino=["fp32"],
        tflite=["fp16"],
        tensorrt=["fp16"],
    )
    record = measure(params, STUDENT)
    assert {row.status for row in record.artifacts.values()} == {"measured"}


def test_an_artifact_that_cannot_run_here_has_a_reason_and_no_figures(
    project: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = project()
    monkeypatch.setattr(type(backend("tensorrt")), "evaluator", lambda _: None)
    monkeypatch.setattr(type(backend("tensorrt")), "unmeasurable", lambda _: "no such runtime")
    row = measure(params, STUDENT).artifacts[artifact("tensorrt", "fp16").key]
    assert (row.status, row.reason, row.measured) == ("not_measured", "no such runtime", None)
    assert row.evaluated_with is None


def test_an_artifact_that_its_runtime_refuses_is_told_with_what_it_said(
    project: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = project()

    def refuse(*_: object) -> None:
        raise RuntimeError("another version made it")

    monkeypatch.setattr(type(backend("tensorrt")), "open", refuse)
    record = measure(params, STUDENT)
    row = record.artifacts[artifact("tensorrt", "fp16").key]
    assert row.status == "failed" and "another version made it" in str(row.reason)
    assert record.artifacts[FP32].measured is not None


def test_what_is_missing_or_of_another_run_is_one_sentence(project: Make) -> None:
    params = project()
    weights = STUDENTS / STUDENT / WEIGHTS
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + b"x")
    with pytest.raises(PipelineError, match="damaged or of another run"):
        measure(params, STUDENT)
    weights.write_bytes(kept)
    file = artifact("onnxruntime", "fp32").folder / "artifact.json"
    text = re.sub(r',\s*"sha256": \[[^]]*\]', "", file.read_text())
    file.write_text(re.sub(r'("weights_digest": ")\w', r"\1x", text))
    with pytest.raises(PipelineError, match="compiled from other weights"):
        measure(params, STUDENT)
    shutil.rmtree(COMPILED)
    with pytest.raises(PipelineError, match=r"fp32/artifact\.json: there is no ArtifactRecord"):
        measure(params, STUDENT)
    assert not record_file(STUDENT).exists()


def stage(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stages.robustness", *arguments], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_the_stage_script_runs_by_hand_and_names_an_unknown_student(
    project: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    project()
    done = stage("--student", STUDENT)
    assert done.returncode == 0 and f"{FP32}: clean" in done.stdout, done.stderr
    monkeypatch.setattr(sys, "argv", ["robustness", "--student", "tinny"])
    with pytest.raises(PipelineError, match="there is no student `tinny`; did you mean `tiny`"):
        main()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"enabled": ["large"]}, "names `large`, which is not in `students.enabled`"),
        ({"strengths": [0]}, "robustness.strengths.0: input should be greater than or equal to 1"),
        ({"strengths": [1, 1]}, "robustness.strengths: names `1` twice"),
        ({"strengths": []}, "robustness.strengths: "),
        ({"images": 0}, "robustness.images: input should be greater than or equal to 1"),
        ({"attack": {"epsilon": 0}}, "robustness.attack.epsilon: input should be greater than or"),
        ({"attack": {"epsilon": -1}}, "robustness.attack.epsilon: input should be greater than or"),
        ({"attack": {"step_size": 0}}, "robustness.attack.step_size: input should be greater than"),
        ({"attack": {"epsilon": 9, "steps": 2}}, "cannot go as far as `epsilon`"),
        ({"attak": {}}, "robustness.attak: unknown key; did you mean `attack`?"),
    ],
)
def test_mistakes_in_the_group_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["robustness"] |= change
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    for kind in (load_params, lambda: load(RobustnessParams)):
        with pytest.raises(PipelineError) as error:
            kind()
        assert said in error.value.what and "\n" not in error.value.what


def test_autoattack_without_its_package_is_an_error_only_where_it_is_asked_for(
    project: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoattack, "PACKAGE", "no-such-package")
    params = project()
    measure(set_params(robustness={"images": 4, "strengths": [1]}), STUDENT)
    params = set_params(robustness={"autoattack": True})
    for ask in (lambda: measure(params, STUDENT), lambda: check_settings(load_params())):
        with pytest.raises(PipelineError, match="needs the package") as error:
            ask()
        assert "pip install '.[robust]'" in str(error.value)


def test_autoattack_leaves_out_what_needs_four_classes() -> None:
    assert attacks_for(10) == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert attacks_for(2) == attacks_for(3) == ("apgd-ce", "fab-t", "square")


@pytest.mark.parametrize(("size", "channels", "classes"), [(28, 1, 5), (32, 3, 2)])
def test_autoattack_gives_images_in_the_cube_that_fool_untrained_networks(
    project: Make, size: int, channels: int, classes: int
) -> None:
    pytest.importorskip("pyautoattack")
    project(size, channels, classes, onnxruntime=["fp32"])
    images, made, accuracy = attacked(AUTOATTACK, Attack(epsilon=16))
    assert np.abs(made.astype(int) - images).max() <= 16
    assert accuracy == 0
    assert np.array_equal(made, attacked(AUTOATTACK, Attack(epsilon=16))[1])


@pytest.mark.slow
def test_autoattack_is_at_least_as_strong_as_pgd_on_a_trained_student(project: Make) -> None:
    pytest.importorskip("pyautoattack")
    project()
    weak = attacked(PGD, Attack(epsilon=3, steps=40, step_size=0.5))[2]
    assert attacked(AUTOATTACK, Attack(epsilon=3))[2] <= weak + 1 / 40


def test_records_hold_the_same_of_every_network(project: Make) -> None:
    record = measure(project(), STUDENT)
    for change, said in (
        ({"right": record.student.right[:8]}, "not a byte"),
        ({"withstood": packed(np.ones(39, int))}, "not a byte for each of 40 images"),
        ({"attacked": {FGSM: 0.5}}, "has not the attacks"),
        ({"corrupted": {"noise": (0.5, 0.5)}}, "has not every corruption"),
    ):
        odd = record.student.model_copy(update=change)
        whole = record.model_copy(update={"student": odd}).model_dump()
        with pytest.raises(ValueError, match=said):
            RobustnessRecord.model_validate(whole)
