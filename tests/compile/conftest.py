"""The small student of the backends' tests, for the ladder."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.backends.base.job import Job
from tests.backends.conftest import job, student, test_images, torch_logits

__all__ = ["int8", "job", "student", "test_images", "torch_logits"]


@pytest.fixture
def int8(job: Callable[[str], Job]) -> Job:
    return job("int8")
