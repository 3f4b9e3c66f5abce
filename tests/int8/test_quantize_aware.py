"""A student goes on learning under rounding: int8 recovers, and nothing else is touched."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.cli.params import Params, load_params
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.data.records import CALIBRATION, PACKED, Manifest
from pipeline.distill.student import distill_student
from pipeline.export.session import load
from pipeline.int8.fake_quantization import calibrate, fake_quantization
from pipeline.int8.params import QUANTIZE_AWARE as RUNG
from pipeline.int8.records import (
    METRICS_FOLDER,
    QUANTIZE_AWARE,
    QuantizeAwareMetrics,
    QuantizeAwareStatus,
    trained_weights,
)
from pipeline.int8.stage import train_quantize_aware
from pipeline.networks.inference import evaluate
from pipeline.networks.pixels import PixelsToLogits
from pipeline.networks.records import STUDENTS, ModelCard
from pipeline.networks.weights import load_pixels_to_logits, save_model
from tests import students as drawn
from tests.distill.conftest import teach
from tests.int8.conftest import int8_logits, make_uneven, trained
from tests.sharing import describe
from tests.training.conftest import ROOT, STUDENT, stage

OUT = QUANTIZE_AWARE / "tiny"
METRICS = METRICS_FOLDER / "tiny.json"
WEIGHTS = "model.safetensors"
ASKED = {"rungs": ["default", RUNG]}


@pytest.fixture
def uneven(folder: Path) -> Params:
    """A project whose student is good in float and bad in int8; it has no test split at all."""
    student, card = trained("relu")
    make_uneven(student.network)
    (STUDENTS / "tiny").mkdir(parents=True)
    PACKED.mkdir(parents=True)
    CALIBRATION.mkdir(parents=True)
    for split, count, seed in (("train", 1280, 1), ("val", 300, 2)):
        images, labels = drawn.draw(count, seed)
        np.save(PACKED / f"{split}_images.npy", images)
        np.save(PACKED / f"{split}_labels.npy", labels)
    np.save(CALIBRATION / "images.npy", drawn.draw(64, seed=3)[0])
    counts = {"train": dict.fromkeys(drawn.CLASSES, 128), "val": dict.fromkeys(drawn.CLASSES, 30)}
    digests = {file.name: sha256(file) for file in PACKED.iterdir()}
    Manifest(
        source="drawn", licence="none", classes=drawn.CLASSES, image_size=drawn.SIZE,
        stored_size=drawn.SIZE,
        channels=drawn.CHANNELS, counts=counts, digests=digests, calibration_digest="",
        mean=(128.0,) * 3, std=(64.0,) * 3, rejected=(),
    ).write(PACKED / "manifest.json")  # fmt: skip
    describe()
    card = card.model_copy(update={"data_digest": digests["train_images.npy"]})
    save_model(STUDENTS / "tiny", student.network, card)
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    network = {"arch": card.arch, "args": card.args, "stem_stride": card.stem_stride}
    tree["students"] = {"enabled": ["tiny"], "zoo": {"tiny": network}}
    tree["views"] = {"epochs": 2, "augment": {"flip": False, "shift": 0}}
    tree["distill"]["losses"] = [{"name": "cross_entropy", "weight": 1.0}]
    recipe = {"batch_size": 32, "optimizer": "adamw", "weight_decay": 0.0, "ema": 0.9}
    tree["distill"]["training"] |= recipe
    tree["quantize"] |= ASKED
    tree["quantize_aware"] = {"epochs": 1, "lr": 0.001}
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))
    return load_params(folder / "params.yaml")


def val() -> tuple[np.ndarray, np.ndarray]:
    return np.load(PACKED / "val_images.npy"), np.load(PACKED / "val_labels.npy")


def rounded_top1(student: PixelsToLogits) -> float:
    with fake_quantization(
        student.network, calibrate(student, np.load(CALIBRATION / "images.npy"))
    ):
        return evaluate(student, *val())[1]


def files() -> dict[Path, str]:
    return {file: sha256(file) for file in Path().rglob("*") if file.is_file()}


def test_int8_recovers_and_the_result_is_a_student_as_any_other(uneven: Params) -> None:
    """The source and all curves stay as they are, the test split is not even there."""
    before, _ = load_pixels_to_logits(STUDENTS / "tiny")
    bad = rounded_top1(before)
    assert evaluate(before, *val())[1] > bad + 0.05
    there = files()
    train_quantize_aware(uneven, "tiny")
    made = {file for file, digest in files().items() if there.get(file) != digest}
    names = ("card.json", WEIGHTS, "model.onnx", "status.json")
    assert made == {METRICS, *(OUT / name for name in names)}
    assert trained_weights("tiny") == OUT
    after, card = load_pixels_to_logits(OUT)
    assert rounded_top1(after) > bad + 0.03
    answers = int8_logits(after, card, np.load(CALIBRATION / "images.npy"), val()[0])
    assert np.mean(answers.argmax(1).numpy() == val()[1]) > bad + 0.03


def test_the_exported_file_computes_what_the_weights_do(uneven: Params) -> None:
    train_quantize_aware(uneven, "tiny")
    student, _ = load_pixels_to_logits(OUT)
    images = val()[0]
    with torch.no_grad():
        expected = student(torch.from_numpy(images))
    found = load(str(OUT / "model.onnx"), threads=1)(images)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-3)


def test_the_card_and_the_metrics_say_what_was_done(uneven: Params) -> None:
    there = load_pixels_to_logits(STUDENTS / "tiny")
    top1 = train_quantize_aware(uneven, "tiny")
    student, card = load_pixels_to_logits(OUT)
    assert (card.epochs, card.best_epoch, card.arch) == (1, 1, there[1].arch)
    assert card.data_digest == there[1].data_digest
    with fake_quantization(
        student.network, calibrate(there[0], np.load(CALIBRATION / "images.npy"))
    ):
        assert evaluate(student, *val())[1] == card.val_top1 == top1
    assert QuantizeAwareMetrics.read(METRICS).val_top1 == top1


def test_batch_norm_keeps_its_statistics_and_all_else_learns(uneven: Params) -> None:
    train_quantize_aware(uneven, "tiny")
    one, two = load_file(STUDENTS / "tiny" / WEIGHTS), load_file(OUT / WEIGHTS)
    assert one.keys() == two.keys()
    same = {name for name, tensor in one.items() if torch.equal(tensor, two[name])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert same == {name for name in one if name.endswith(statistics)}


COMMAND = ("-m", "stages.quantize_aware", "--student", "tiny")


def test_a_run_that_is_killed_ends_with_the_same_bits(uneven: Params) -> None:
    train_quantize_aware(uneven, "tiny")
    undisturbed = {file.name: sha256(file) for file in OUT.iterdir()}
    for file in OUT.iterdir():
        file.unlink()
    OUT.rmdir()
    disturbed = stage(*COMMAND, EDGESTILL_CHECKPOINT_SECONDS="0")
    end = time.monotonic() + 120
    while not list(Path(".work").glob("checkpoints/*.pt")) and time.monotonic() < end:
        assert disturbed.poll() is None, disturbed.communicate()
    disturbed.send_signal(signal.SIGKILL)
    disturbed.wait()
    assert list(Path(".work/checkpoints").glob("*.pt")) and not OUT.exists()
    train_quantize_aware(uneven, "tiny")
    assert {file.name: sha256(file) for file in OUT.iterdir()} == undisturbed
    assert not list(Path(".work/checkpoints").iterdir())


def test_a_training_that_diverges_is_recorded_as_a_rung_without_weights(uneven: Params) -> None:
    hot = uneven.quantize_aware.model_copy(update={"lr": 1e30})
    params = uneven.model_copy(update={"quantize_aware": hot})
    reason = train_quantize_aware(params, "tiny")
    assert isinstance(reason, str) and reason.startswith("training diverged: the loss")
    assert [file.name for file in OUT.iterdir()] == ["status.json"]
    assert QuantizeAwareMetrics.read(METRICS).val_top1 is None
    with pytest.raises(PipelineError, match="training diverged: the loss"):
        trained_weights("tiny")
    assert not list(Path(".work").rglob("*.pt")), "a checkpoint of it is of no use"


def test_nothing_is_trained_where_the_rung_is_not_asked_for(folder: Path) -> None:
    """The stage ends at once: it reads neither data nor students, and says why it made nothing."""
    (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    done = stage(*COMMAND[:-1], STUDENT)
    said, _ = done.communicate(timeout=60)
    assert done.returncode == 0 and "`quantize_aware` is not among quantize.rungs" in said
    out = QUANTIZE_AWARE / STUDENT
    assert [file.name for file in out.iterdir()] == ["status.json"]
    status = QuantizeAwareStatus.read(out / "status.json")
    assert not status.trained and status.reason == "`quantize_aware` is not among quantize.rungs"
    metrics = METRICS_FOLDER / f"{STUDENT}.json"
    assert QuantizeAwareMetrics.read(metrics).val_top1 is None
    assert set(files()) == {
        Path("params.yaml"), Path(".dvc/config"), metrics, out / "status.json"
    }  # fmt: skip
    with pytest.raises(PipelineError, match=r"is not among quantize\.rungs"):
        trained_weights(STUDENT)


def test_weights_of_an_earlier_run_go_where_the_rung_is_no_longer_asked_for(
    uneven: Params,
) -> None:
    train_quantize_aware(uneven, "tiny")
    quantize = uneven.quantize.model_copy(update={"rungs": ("default",)})
    train_quantize_aware(uneven.model_copy(update={"quantize": quantize}), "tiny")
    assert [file.name for file in OUT.iterdir()] == ["status.json"]


def test_a_student_of_other_train_images_is_refused(uneven: Params) -> None:
    file = STUDENTS / "tiny" / "card.json"
    ModelCard.read(file).model_copy(update={"data_digest": "0" * 64}).write(file)
    with pytest.raises(PipelineError, match="other train images") as refused:
        train_quantize_aware(uneven, "tiny")
    assert refused.value.where == str(file)
    assert not OUT.exists()


def test_the_teachers_recorded_logits_are_replayed(configured: Callable[..., Params]) -> None:
    """Two epochs are recorded, the first serves; a recording for other views is refused."""

    def params(epochs: int = 2, **more: Any) -> Params:
        return configured(views={"epochs": epochs}, quantize=ASKED, **more)

    out = QUANTIZE_AWARE / STUDENT
    recorded = params()
    teach(recorded)
    distill_student(recorded, STUDENT)
    train_quantize_aware(recorded, STUDENT)
    card = ModelCard.read(out / "card.json")
    assert (card.epochs, card.channels) == (1, 1)
    one = load_file(out / WEIGHTS)
    train_quantize_aware(params(teacher_logits={"record": False}), STUDENT)
    two, before = load_file(out / WEIGHTS), load_file(STUDENTS / STUDENT / WEIGHTS)
    moved = sum((one[name] - before[name]).square().sum() for name in one)
    apart = sum((one[name] - two[name]).square().sum() for name in one)
    assert apart < 0.05 * moved
    kept = sha256(out / WEIGHTS)
    with pytest.raises(PipelineError, match="recorded for other views"):
        train_quantize_aware(params(epochs=3), STUDENT)
    assert sha256(out / WEIGHTS) == kept
