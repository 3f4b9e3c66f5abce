"""Recorded teacher logits: exactly those of the views that students see, and no others."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cli.params import Params
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.data.records import PACKED, Manifest, load_split
from pipeline.distill import recording as room
from pipeline.distill.recording import (
    RecordedLogits,
    compress,
    expand,
    record_teacher_logits,
    student_views,
    wanted,
)
from pipeline.distill.records import TEACHER_LOGITS
from pipeline.distill.teachers import load_teacher
from pipeline.networks.records import CARD, TEACHERS, ModelCard
from pipeline.training.teacher import train_teacher

CPU = torch.device("cpu")
ALL = {"flip": True, "shift": 2, "erase": 0.5, "trivial": True, "mixup": 0.3, "cutmix": 1.0}


def logits(n: int = 6, classes: int = 9) -> torch.Tensor:
    return 4 * torch.randn(n, classes, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kept_logits_give_exact_probabilities_and_share_the_rest_evenly(temperature: float) -> None:
    full = logits()
    rebuilt = expand(*compress(full, 3, temperature), classes=9, temperature=temperature)
    exact, found = (full / temperature).softmax(1), (rebuilt / temperature).softmax(1)
    top = full.topk(3).indices
    torch.testing.assert_close(found.gather(1, top), exact.gather(1, top))
    rest = found.scatter(1, top, torch.nan)
    shared = (1 - exact.gather(1, top).sum(1)) / 6
    for row, share in zip(rest, shared, strict=True):
        torch.testing.assert_close(row[~row.isnan()], share.expand(6))


def test_all_logits_but_one_are_rebuilt_whole() -> None:
    full = logits()
    torch.testing.assert_close(expand(*compress(full, 8, 4.0), classes=9, temperature=4.0), full)


@pytest.fixture
def taught(configured: Callable[..., Params]) -> Callable[..., Params]:
    """Params whose teacher has been trained."""
    train_teacher(configured(), "resnet")
    return configured


@pytest.mark.parametrize("top_k", [None, 3])
def test_a_recording_holds_the_teachers_answers_to_the_same_views(
    taught: Callable[..., Params], top_k: int | None
) -> None:
    params = taught(views={"epochs": 2, "augment": ALL}, teacher_logits={"top_k": top_k})
    record_teacher_logits(params)
    manifest = Manifest.read(PACKED / "manifest.json")
    views, teacher = student_views(params, manifest), load_teacher("resnet", manifest)
    recorded = RecordedLogits(wanted(params, manifest))
    samples = np.random.default_rng(0).permutation(len(views))[:40]
    for epoch in (1, 0):
        with torch.no_grad():
            answers = teacher(views.batch(epoch, samples, CPU)[0])
        if top_k is not None:
            answers = expand(
                *compress(answers, top_k, 4.0), classes=len(manifest.classes), temperature=4.0
            )
        found = recorded.batch(epoch, samples, CPU)
        torch.testing.assert_close(found, answers[None], rtol=1e-4, atol=1e-4)
    parts = [recorded.batch(0, samples[:7], CPU), recorded.batch(0, samples[7:], CPU)]
    assert torch.equal(torch.cat(parts, dim=1), recorded.batch(0, samples, CPU))


@pytest.mark.parametrize(
    "change",
    [
        {"views": {"epochs": 1, "augment": {"flip": False}}},
        {"views": {"epochs": 3}},
        {"seed": 99},
        {"teacher_logits": {"top_k": 2}},
        {"teacher_logits": {"top_k": 3, "temperature": 1.0}},
    ],
    ids=["augmentation", "epochs", "seed", "top_k", "temperature"],
)
def test_a_recording_for_other_views_is_refused(
    taught: Callable[..., Params], change: dict[str, object]
) -> None:
    record_teacher_logits(taught(teacher_logits={"top_k": 3}))
    manifest = Manifest.read(PACKED / "manifest.json")
    with pytest.raises(PipelineError, match=r"(?s)recorded for other .*record them again"):
        RecordedLogits(wanted(taught(**change), manifest))


def test_crops_of_larger_images_are_recorded_and_of_others_refused(
    taught: Callable[..., Params],
) -> None:
    params = taught(views={"epochs": 1, "augment": {"flip": True, "crop": 0.5}})
    manifest = Manifest.read(PACKED / "manifest.json")
    shared = PACKED.parent.resolve()  # which other tests read
    PACKED.parent.unlink()
    shutil.copytree(shared, PACKED.parent)
    packed = PACKED / "train_images.npy"
    np.save(packed, load_split("train")[0].repeat(2, axis=1).repeat(2, axis=2))
    digests = manifest.digests | {packed.name: sha256(packed)}
    stored = 2 * manifest.image_size
    manifest = manifest.model_copy(update={"stored_size": stored, "digests": digests})
    manifest.write(PACKED / "manifest.json")
    card = TEACHERS / "resnet" / CARD
    of_these = {"data_digest": digests[packed.name]}
    ModelCard.read(card).model_copy(update=of_these).write(card)
    record_teacher_logits(params)
    views, samples = student_views(params, manifest), np.arange(20)
    assert views.known[0].shape[1] == manifest.image_size < views.images.shape[1]
    with torch.no_grad():
        answers = load_teacher("resnet", manifest)(views.batch(0, samples, CPU)[0])
    found = RecordedLogits(wanted(params, manifest)).batch(0, samples, CPU)
    torch.testing.assert_close(found, answers[None], rtol=1e-4, atol=1e-4)
    other = manifest.model_copy(update={"digests": digests | {packed.name: "0" * 64}})
    with pytest.raises(PipelineError, match="recorded for other views"):
        RecordedLogits(wanted(params, other))


def test_a_recording_of_another_teacher_is_refused(taught: Callable[..., Params]) -> None:
    record_teacher_logits(taught())
    params = taught(seed=5)
    train_teacher(params, "resnet")
    manifest = Manifest.read(PACKED / "manifest.json")
    with pytest.raises(PipelineError, match="recorded for other teachers"):
        RecordedLogits(wanted(taught(), manifest))


def test_a_recording_of_the_same_weights_normalised_otherwise_is_refused(
    taught: Callable[..., Params],
) -> None:
    params = taught()
    record_teacher_logits(params)
    file = Path("models/teachers/resnet/card.json")
    card = ModelCard.read(file)
    other = card.normalisation.model_copy(update={"mean": (1.0,)})
    card.model_copy(update={"normalisation": other}).write(file)
    manifest = Manifest.read(PACKED / "manifest.json")
    with pytest.raises(PipelineError, match="recorded for other teachers"):
        RecordedLogits(wanted(params, manifest))


def test_a_teacher_that_is_not_there_is_named(configured: Callable[..., Params]) -> None:
    with pytest.raises(PipelineError, match=r"resnet/card.json: there is no ModelCard record"):
        record_teacher_logits(configured())


def test_a_teacher_of_other_train_images_is_refused_by_name(
    taught: Callable[..., Params],
) -> None:
    file = Path("models/teachers/resnet/card.json")
    ModelCard.read(file).model_copy(update={"data_digest": "0" * 64}).write(file)
    with pytest.raises(PipelineError, match="other train images") as refused:
        record_teacher_logits(taught())
    assert refused.value.where == str(file)
    assert not TEACHER_LOGITS.exists()


def test_a_full_disk_ends_a_recording_in_one_error_and_leaves_none(
    taught: Callable[..., Params], tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "WORK", tiny_disk / "teacher_logits")
    params = taught(views={"epochs": 200})
    with pytest.raises(OSError, match="No space left"):
        record_teacher_logits(params)
    assert not TEACHER_LOGITS.exists()


def test_another_loss_or_temperature_fits_the_same_recording(
    taught: Callable[..., Params],
) -> None:
    manifest = Manifest.read(PACKED / "manifest.json")
    losses = [{"name": "dist", "weight": 1.0}]
    assert wanted(taught(), manifest) == wanted(taught(distill={"losses": losses}), manifest)


def test_a_stopped_recording_goes_on_from_its_last_whole_epoch(
    taught: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = taught(views={"epochs": 3, "augment": ALL})
    record_teacher_logits(params)
    whole = np.load(TEACHER_LOGITS / "resnet/logits.npy")
    shutil.rmtree(TEACHER_LOGITS)
    epochs: list[int] = []
    real = room.Views.batch

    def stop(self: room.Views, epoch: int, *rest: object) -> object:
        epochs.append(epoch)
        if epochs == [0, 1]:
            raise KeyboardInterrupt
        return real(self, epoch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(room.Views, "batch", stop)
    with pytest.raises(KeyboardInterrupt):
        record_teacher_logits(params)
    assert not TEACHER_LOGITS.exists()
    record_teacher_logits(params)
    assert epochs == [0, 1, 1, 2]
    assert np.array_equal(np.load(TEACHER_LOGITS / "resnet/logits.npy"), whole)
    assert not list(Path(".work/teacher_logits").rglob("*.npy"))


def test_nothing_is_recorded_where_teachers_run_in_every_step(
    taught: Callable[..., Params],
) -> None:
    record_teacher_logits(taught(teacher_logits={"record": False}))
    assert [file.name for file in TEACHER_LOGITS.iterdir()] == ["record.json"]


def test_the_rest_of_a_recording_is_a_log_of_mass() -> None:
    _, _, others = compress(torch.zeros(1, 10), 4, 2.0)
    assert others.item() == pytest.approx(2 * math.log(6))
