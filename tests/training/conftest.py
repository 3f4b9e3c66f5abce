"""What the tests of training, distillation and int8 share.

Small networks, images that are learnt quickly, a project folder, stages as processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipeline.cli.params import Params, load_params
from pipeline.data.params import Augment
from pipeline.data.prepare import prepare
from pipeline.data.sources import fetch
from pipeline.data.views import Views
from pipeline.networks.build import build_network
from pipeline.networks.inference import set_up_torch
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.training import loop
from pipeline.training.devices import launch
from pipeline.training.loop import fit
from pipeline.training.objective import Fitted, Objective, Recording, Run
from pipeline.training.params import Recipe
from pipeline.training.rounding import Int8Phase
from pipeline.training.teacher import Supervised
from tests.sharing import made_once

ROOT = Path(__file__).parents[2]

TINY = Network(arch="mobilenetv3_small_050", taps={"middle": "blocks.1", "late": "blocks.3"})
RESNET = Network(
    arch="resnet10t",
    args={"channels": [8, 8, 16, 16]},
    taps={"middle": "layer2", "late": "layer3"},
)
TRAINING = Recipe(batch_size=16, lr=0.05, weight_decay=0.0001, optimizer="sgd")
AUGMENT = Augment(flip=True, shift=1)
STUDENT = "mnv3_small_050"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DVCLive and checkpoints write below the working directory."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with 300 real images per split."""

    def make(folder: Path) -> None:
        data = load_params(ROOT / "params.yaml").data.model_copy(
            update={"limit": 300, "calibration_images": 32, "folder": folder / "none"}
        )
        fetch(data, folder / "data/raw")
        prepare(data, 1, folder / "data/raw", folder / "data/packed", folder / "data/calibration")

    return made_once(tmp_path_factory, "fashion", make)


@pytest.fixture
def configured(fashion: Path, folder: Path) -> Callable[..., Params]:
    """Work in a folder that shares the data; write and load params with changes to groups.

    The teacher is small, every network learns for one epoch; `teacher` changes the teacher.
    """
    (folder / "data").symlink_to(fashion / "data")

    def make(teacher: dict[str, Any] | None = None, **groups: Any) -> Params:
        tree = yaml.safe_load((ROOT / "params.yaml").read_text())
        resnet = tree["teachers"]["zoo"]["resnet"]
        tree["checkpoints"] = "checkpoints"
        resnet["network"] = RESNET.model_dump(exclude_defaults=True)
        tree["views"]["epochs"] = resnet["views"]["epochs"] = 1
        for trained in (resnet, tree["distill"]):
            trained["training"] |= {"batch_size": 50, "lr": 0.005}
        for key, value in (teacher or {}).items():
            resnet[key] = resnet[key] | value if isinstance(resnet[key], dict) else value
        for group, value in groups.items():
            old = tree[group]
            tree[group] = old | value if isinstance(old, dict) else value
        (folder / "params.yaml").write_text(yaml.safe_dump(tree))
        return load_params(folder / "params.yaml")

    return make


def split(seed: int, n: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright upper or a bright lower half, which flips keep: learnt quickly."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n)
    images = random.integers(0, 100, (n, 16, 16, 1))
    images[labels == 0, :8] += 120
    images[labels == 1, 8:] += 120
    return images.astype(np.uint8), labels.astype(np.int64)


def views(augment: Augment = AUGMENT) -> Views:
    return Views(*split(1), augment, classes=2, seed=4)


def model(network: Network = TINY, seed: int = 3) -> PixelsToLogits:
    set_up_torch(seed)
    built = build_network(network, classes=2, channels=1, image_size=16)
    return PixelsToLogits(built, student_normalisation(1))


def weights(of: PixelsToLogits) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in of.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def run(
    of: PixelsToLogits | Objective,
    key: str,
    training: Recipe = TRAINING,
    *,
    epochs: int = 3,
    augment: Augment = AUGMENT,
    checkpoint_seconds: float = 60.0,
    recorded: Recording | None = None,
    int8: Int8Phase | None = None,
    val: tuple[np.ndarray, np.ndarray] | None = None,
) -> Fitted:
    """Fit a bare model on its labels, or any objective."""
    objective = Supervised(of, 0.0) if isinstance(of, PixelsToLogits) else of
    made = Run("net", key, 5, training, epochs, checkpoint_seconds, int8)
    fabric = launch(training)
    return fit(fabric, objective, views(augment), val or split(2), made, recorded)


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Within this a run is interrupted before its next step once it has made `steps` of them."""
    real, made = loop._Loop._train_step, []

    def step(self: loop._Loop, epoch: int, samples: np.ndarray) -> None:
        if len(made) == steps:
            raise KeyboardInterrupt
        made.append(epoch)
        real(self, epoch, samples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Loop, "_train_step", step)
        with pytest.raises(KeyboardInterrupt):
            yield


def stage(*command: str, **more: str) -> subprocess.Popen[str]:
    """A stage as DVC starts it, in the current folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | more
    return subprocess.Popen(
        [sys.executable, *command], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
