"""The stages of this room on real images: teachers of every origin, and a student."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pipeline.contracts import ModelCard, ModelMetrics
from pipeline.data.prepare import prepare
from pipeline.data.sources import fetch
from pipeline.distill.run import distill_student, train_teacher
from pipeline.errors import PipelineError
from pipeline.networks.build import build_network
from pipeline.params import Network, Params, load_params

ROOT = Path(__file__).parents[2]
SMALL = {"arch": "resnet10t", "args": {"channels": [8, 8, 16, 16]}, "taps": {"late": "layer4"}}


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with 300 real images per split."""
    folder = tmp_path_factory.mktemp("fashion")
    data = load_params(ROOT / "params.yaml").data.model_copy(
        update={"limit": 300, "calibration_images": 32, "folder": folder / "none"}
    )
    fetch(data, folder / "data/raw")
    prepare(data, 1, folder / "data/raw", folder / "data/packed", folder / "data/calibration")
    return folder


@pytest.fixture
def configured(
    fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Params]:
    """Work in a folder that shares the data; give params with dotted changes."""
    (tmp_path / "data").symlink_to(fashion / "data")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    monkeypatch.chdir(tmp_path)

    def make(**changes: Any) -> Params:
        tree = yaml.safe_load((ROOT / "params.yaml").read_text())
        tree["teacher"]["network"] = SMALL
        for room in ("teacher", "distill"):
            tree[room]["training"] |= {"epochs": 1, "batch_size": 50, "lr": 0.005}
        tree["teacher"] |= changes
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
        return load_params(tmp_path / "params.yaml")

    return make


def teacher_weights() -> dict[str, torch.Tensor]:
    return load_file("models/teacher/model.safetensors")


def test_a_teacher_is_trained_and_taught_from(configured: Callable[..., Params]) -> None:
    params = configured()
    train_teacher(params)
    card = ModelCard.read(Path("models/teacher/card.json"))
    manifest_mean = card.normalisation.mean
    pixels = np.load("data/packed/train_images.npy")
    assert manifest_mean == pytest.approx([pixels.mean()])
    assert card.classes[0] == "T-shirt/top"
    student = params.students.enabled[1]
    distill_student(params, student)
    metrics = ModelMetrics.read(Path(f"metrics/students/{student}.json"))
    assert 0.05 < metrics.test_top1 <= 1
    own = ModelCard.read(Path(f"models/students/{student}/card.json"))
    assert (own.normalisation.mean, own.normalisation.std) == ((128.0,), (64.0,))


def test_a_checkpoint_can_be_used_as_it_is(
    configured: Callable[..., Params], tmp_path: Path
) -> None:
    train_teacher(configured())
    before = teacher_weights()
    Path("models/teacher").rename("mine")
    training = {**configured().teacher.training.model_dump(), "epochs": 0}
    params = configured(
        source="checkpoint", checkpoint=str(tmp_path / "mine/model.safetensors"), training=training
    )
    train_teacher(params)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher_weights().items())


def test_a_checkpoint_without_a_card_needs_its_normalisation(
    configured: Callable[..., Params],
) -> None:
    network = Network.model_validate(SMALL)
    model = build_network(network, classes=10, channels=1, image_size=28)
    save_file(model.state_dict(), "bare.safetensors")
    changes = {"source": "checkpoint", "checkpoint": "bare.safetensors"}
    with pytest.raises(PipelineError, match="normalised is not known"):
        train_teacher(configured(**changes))
    train_teacher(configured(**changes, normalisation={"mean": [70], "std": [90]}))
    card = ModelCard.read(Path("models/teacher/card.json"))
    assert card.normalisation.mean == (70.0,)


def test_a_checkpoint_of_other_classes_stops_the_stage(
    configured: Callable[..., Params],
) -> None:
    network = Network.model_validate(SMALL)
    model = build_network(network, classes=7, channels=1, image_size=28)
    save_file(model.state_dict(), "other.safetensors")
    with pytest.raises(PipelineError, match="the checkpoint knows 7 classes"):
        train_teacher(configured(source="checkpoint", checkpoint="other.safetensors"))
    assert not Path("models").exists()


def test_pretrained_weights_are_taken_and_the_head_is_new(tmp_path: Path) -> None:
    """timm reads its weights from a local file here; the way through the network is timm's."""
    network = Network.model_validate(SMALL)
    source = build_network(network, classes=1000, channels=3, image_size=28)
    save_file(source.state_dict(), tmp_path / "imagenet.safetensors")
    overlay = {"file": str(tmp_path / "imagenet.safetensors"), "custom_load": False}
    args = {**SMALL["args"], "pretrained_cfg_overlay": overlay}
    model = build_network(
        Network.model_validate({**SMALL, "args": args}),
        classes=10, channels=1, image_size=28, pretrained=True,
    )  # fmt: skip
    found, given = model.state_dict(), source.state_dict()
    assert torch.equal(found["layer4.0.conv1.weight"], given["layer4.0.conv1.weight"])
    torch.testing.assert_close(
        found["conv1.0.weight"], given["conv1.0.weight"].sum(dim=1, keepdim=True)
    )
    assert found["fc.weight"].shape[0] == 10


def test_pretrained_weights_that_cannot_be_had_are_one_error() -> None:
    network = Network(
        arch="resnet10t", args={"pretrained_cfg_overlay": {"file": "nowhere.safetensors"}}
    )
    with pytest.raises(PipelineError, match="pretrained weights could not be loaded"):
        build_network(network, classes=10, channels=1, image_size=28, pretrained=True)
