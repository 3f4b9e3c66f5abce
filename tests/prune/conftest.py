"""A project folder with a taught student, for the tests of this room."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli.params import Params, load_params
from pipeline.distill.student import distill_student
from tests.distill.conftest import teach
from tests.sharing import made_once
from tests.training.conftest import RESNET, ROOT, fashion, folder  # noqa: F401 - fixtures

STUDENT = "small"
NETWORK = {"arch": "mobilenetv3_small_050", "stem_stride": 2}
BRIEF = {"enabled": [STUDENT], "steps": 2, "step_epochs": 1, "epochs": 1}


def write_params(**prune: Any) -> Params:
    """Params of short trainings in the current folder, with changes to the group `prune`."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    resnet = tree["teachers"]["zoo"]["resnet"]
    resnet["network"] = RESNET.model_dump(exclude_defaults=True) | {"stem_stride": 2}
    tree["students"] = {"enabled": [STUDENT], "zoo": {STUDENT: NETWORK}}
    tree["views"]["epochs"] = resnet["views"]["epochs"] = 1
    for trained in (resnet, tree["distill"]):
        trained["training"] |= {"batch_size": 50, "lr": 0.005}
    tree["prune"] |= BRIEF | prune
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    return load_params()


@pytest.fixture(scope="session")
def distilled(fashion: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A project folder with a distilled student."""

    def make(place: Path) -> None:
        home = Path.cwd()
        os.chdir(place)
        try:
            (place / "data").symlink_to(fashion / "data")
            (place / ".dvc").mkdir()
            (place / ".dvc/config").write_text("[core]\n    no_scm = true\n")
            params = write_params()
            teach(params)
            distill_student(params, STUDENT)
        finally:
            os.chdir(home)

    return made_once(tmp_path_factory, "distilled_to_prune", make)


@pytest.fixture
def project(distilled: Path, folder: Path) -> Callable[..., Params]:  # noqa: F811
    """Work in a copy of that folder, with changes to the group `prune`."""
    (folder / "data").symlink_to((distilled / "data").resolve())
    shutil.copytree(distilled / "models", folder / "models")
    return write_params
