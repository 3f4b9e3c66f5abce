"""Stage `train_teacher`: checkpoints as teachers, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.cli.params import Params
from pipeline.core.errors import PipelineError
from pipeline.networks.build import build_network
from pipeline.networks.records import ModelCard
from pipeline.training.task import checkpoint_seconds
from pipeline.training.teacher import train_teacher
from tests.training.conftest import RESNET

CHECKPOINTS = Path("checkpoints")
GREY = {"mean": [70], "std": [90]}
TEACHER_WEIGHTS = Path("models/teachers/resnet/model.safetensors")


def test_a_checkpoint_can_be_used_as_it_is(configured: Callable[..., Params]) -> None:
    train_teacher(configured(), "resnet")
    before = load_file(TEACHER_WEIGHTS)
    CHECKPOINTS.mkdir()
    TEACHER_WEIGHTS.parent.rename(CHECKPOINTS / "mine")
    mine = {"network": {"weights": "mine/model.safetensors"}}
    train_teacher(configured(mine | {"views": {"epochs": 0}}), "resnet")
    after = load_file(TEACHER_WEIGHTS)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_a_checkpoint_from_elsewhere_only_has_to_know_the_same_classes(
    configured: Callable[..., Params],
) -> None:
    """Its card may name other train images; the card that the stage writes names these."""
    train_teacher(configured(), "resnet")
    CHECKPOINTS.mkdir()
    TEACHER_WEIGHTS.parent.rename(CHECKPOINTS / "mine")
    file = CHECKPOINTS / "mine/card.json"
    card = ModelCard.read(file)
    card.model_copy(update={"data_digest": "0" * 64}).write(file)
    mine = {"network": {"weights": "mine/model.safetensors"}, "views": {"epochs": 0}}
    train_teacher(configured(mine), "resnet")
    assert ModelCard.read(TEACHER_WEIGHTS.with_name("card.json")).data_digest == card.data_digest
    card.model_copy(update={"classes": tuple("abcdefghij")}).write(file)
    with pytest.raises(PipelineError, match=r"classifier would stay random: .* 2 new: fc\.bias"):
        train_teacher(configured(mine), "resnet")


def test_a_checkpoint_without_a_card_needs_its_normalisation(
    configured: Callable[..., Params],
) -> None:
    model = build_network(RESNET, classes=10, channels=1, image_size=28)
    CHECKPOINTS.mkdir()
    save_file(model.state_dict(), CHECKPOINTS / "bare.safetensors")
    network: dict[str, Any] = {"weights": "bare.safetensors"}
    bare = {"network": network}
    with pytest.raises(PipelineError, match=r"normalisation .* is not known"):
        train_teacher(configured(bare), "resnet")
    network["normalisation"] = {"mean": [70], "std": [90]}
    train_teacher(configured(bare), "resnet")
    assert ModelCard.read(TEACHER_WEIGHTS.with_name("card.json")).normalisation.mean == (70.0,)


def test_a_checkpoint_of_other_classes_gets_a_new_classifier(
    configured: Callable[..., Params],
) -> None:
    model = build_network(RESNET, classes=7, channels=1, image_size=28)
    CHECKPOINTS.mkdir()
    save_file(model.state_dict(), CHECKPOINTS / "other.safetensors")
    other: dict[str, Any] = {"network": {"weights": "other.safetensors", "normalisation": GREY}}
    with pytest.raises(PipelineError, match="classifier would stay random"):
        train_teacher(configured(other | {"views": {"epochs": 0}}), "resnet")
    assert not Path("models").exists()
    train_teacher(configured(other), "resnet")
    started = ModelCard.read(TEACHER_WEIGHTS.with_name("card.json")).started_from
    assert started is not None and started.new == ("fc.bias", "fc.weight")
    assert started.source == "other.safetensors" and started.left_over == started.new


@pytest.mark.parametrize("text", ["soon", "nan", "-1"])
def test_a_time_between_checkpoints_that_is_none_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESTILL_CHECKPOINT_SECONDS", text)
    with pytest.raises(PipelineError, match="not a number of seconds"):
        checkpoint_seconds()
