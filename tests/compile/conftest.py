"""The small student of the backends' tests, for the ladder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from pipeline.backends.base.job import Compiler, Job
from pipeline.backends.base.params import Backends
from pipeline.backends.base.registry import backend
from pipeline.core.params import Selection, load
from tests.backends.conftest import job, student, test_images, torch_logits

__all__ = ["int8", "job", "student", "test_images", "torch_logits"]

ROOT = Path(__file__).parents[2]


class _Wanted(Selection):
    backends: Backends


SHIPPED = load(_Wanted, ROOT / "params.yaml").backends


def compiler(name: str) -> Compiler:
    """The compiler of a backend with the settings of the shipped params.yaml."""
    return backend(name).compiler(SHIPPED.settings(name))


def shown_by_dvc(file: Path) -> Any:
    """What `dvc metrics show` prints of a file in the current folder."""
    Repo.init(no_scm=True, force=True)
    return Repo().metrics.show([str(file)])[""]["data"][str(file)].get("data")


@pytest.fixture
def int8(job: Callable[[str], Job]) -> Job:
    return job("int8")
