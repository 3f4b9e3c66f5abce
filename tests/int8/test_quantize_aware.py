"""A student goes on learning under rounding: int8 recovers, and nothing else is touched."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.distill.test_fake_quantization import int8_logits, make_uneven, trained

from pipeline.cli.params import Params, load_params
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.data.records import CALIBRATION, PACKED, Manifest
from pipeline.distill.student import distill_student
from pipeline.int8.fake_quantization import calibrate, fake_quantization
from pipeline.networks.inference import evaluate
from pipeline.networks.pixels import PixelsToLogits
from pipeline.networks.records import STUDENTS, ModelCard
from pipeline.networks.weights import load_pixels_to_logits, save_model
from tests import students as drawn
from tests.distill.conftest import ROOT
from tests.distill.test_stages import STUDENT, stage, teach

OUT = Path(".work/rounded")
WEIGHTS = "model.safetensors"


@pytest.fixture
def uneven(folder: Path) -> Params:
    """A project whose student is good in float and bad in int8; it has no test split at all."""
    student, card = trained("relu")
    make_uneven(student.network)
    (STUDENTS / "tiny").mkdir(parents=True)
    save_model(STUDENTS / "tiny", student.network, card)
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
        channels=drawn.CHANNELS, counts=counts, digests=digests, calibration_digest="",
        mean=(128.0,) * 3, std=(64.0,) * 3, rejected=(),
    ).write(PACKED / "manifest.json")  # fmt: skip
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    network = {"arch": card.arch, "args": card.args, "stem_stride": card.stem_stride}
    tree["students"] = {"enabled": ["tiny"], "zoo": {"tiny": network}}
    tree["views"] = {"epochs": 2, "augment": {"flip": False, "shift": 0}}
    tree["distill"]["losses"] = [{"name": "cross_entropy", "weight": 1.0}]
    recipe = {"batch_size": 32, "optimizer": "adamw", "weight_decay": 0.0, "ema": 0.9}
    tree["distill"]["training"] |= recipe
    tree["quantize"]["training"] = {"epochs": 1, "lr": 0.001}
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
    return {file: sha256(file) for file in Path.cwd().rglob("*") if file.is_file()}


def test_int8_recovers_and_the_result_is_a_student_as_any_other(uneven: Params) -> None:
    """No metrics are written, the source stays, the test split is not even there."""
    before, _ = load_pixels_to_logits(STUDENTS / "tiny")
    bad = rounded_top1(before)
    assert evaluate(before, *val())[1] > bad + 0.05
    there = files()
    quantization_aware_student(uneven, "tiny", OUT)
    made = {file for file, digest in files().items() if there.get(file) != digest}
    assert made == {OUT.absolute() / "card.json", OUT.absolute() / WEIGHTS}
    after, card = load_pixels_to_logits(OUT)
    assert rounded_top1(after) > bad + 0.03
    answers = int8_logits(after, card, np.load(CALIBRATION / "images.npy"), val()[0])
    assert np.mean(answers.argmax(1).numpy() == val()[1]) > bad + 0.03


def test_the_card_says_what_was_done(uneven: Params) -> None:
    there = load_pixels_to_logits(STUDENTS / "tiny")
    quantization_aware_student(uneven, "tiny", OUT)
    student, card = load_pixels_to_logits(OUT)
    assert (card.quantization_aware, card.epochs, card.best_epoch) == (True, 1, 1)
    with fake_quantization(
        student.network, calibrate(there[0], np.load(CALIBRATION / "images.npy"))
    ):
        assert evaluate(student, *val())[1] == card.val_top1
    assert not there[1].quantization_aware and there[1].arch == card.arch


def test_batch_norm_keeps_its_statistics_and_all_else_learns(uneven: Params) -> None:
    quantization_aware_student(uneven, "tiny", OUT)
    one, two = load_file(STUDENTS / "tiny" / WEIGHTS), load_file(OUT / WEIGHTS)
    assert one.keys() == two.keys()
    same = {name for name, tensor in one.items() if torch.equal(tensor, two[name])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert same == {name for name in one if name.endswith(statistics)}


COMMAND = """
from pathlib import Path
from pipeline.distill.quantization_aware import quantization_aware_student
from pipeline.params import load_params
quantization_aware_student(load_params(), "tiny", Path(".work/rounded"))
"""


def test_a_run_that_is_killed_ends_with_the_same_bits(uneven: Params) -> None:
    quantization_aware_student(uneven, "tiny", Path("undisturbed"))
    disturbed = stage("-c", COMMAND, EDGESTILL_CHECKPOINT_SECONDS="0")
    end = time.monotonic() + 120
    while not list(Path(".work").glob("checkpoints/*.pt")) and time.monotonic() < end:
        assert disturbed.poll() is None, disturbed.communicate()
    disturbed.send_signal(signal.SIGKILL)
    disturbed.wait()
    assert list(Path(".work/checkpoints").glob("*.pt")) and not OUT.exists()
    quantization_aware_student(uneven, "tiny", OUT)
    assert sha256(OUT / WEIGHTS) == sha256(Path("undisturbed", WEIGHTS))
    assert not list(Path(".work/checkpoints").iterdir())


def test_the_teachers_recorded_logits_are_replayed(
    configured: Callable[..., Params], folder: Path
) -> None:
    """Two epochs are recorded, the first serves; a recording for other views is refused."""
    params = configured(views={"epochs": 2})
    teach(params)
    distill_student(params, STUDENT)
    quantization_aware_student(params, STUDENT, folder / "recorded")
    card = ModelCard.read(folder / "recorded" / "card.json")
    assert (card.epochs, card.channels) == (1, 1)
    online = configured(views={"epochs": 2}, teacher_logits={"record": False})
    quantization_aware_student(online, STUDENT, folder / "online")
    one, two = (load_file(folder / name / WEIGHTS) for name in ("recorded", "online"))
    before = load_file(STUDENTS / STUDENT / WEIGHTS)
    moved = sum((one[name] - before[name]).square().sum() for name in one)
    apart = sum((one[name] - two[name]).square().sum() for name in one)
    assert apart < 0.05 * moved
    with pytest.raises(PipelineError, match="recorded for other views"):
        quantization_aware_student(configured(views={"epochs": 3}), STUDENT, folder / "stale")
    assert not (folder / "stale").exists()
