"""The small student of the backends' tests, for the ladder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.backends.base import Job
from pipeline.networks.build import load_pixels_to_logits
from pipeline.quantize.sensitivity import product_layers
from tests.backends.conftest import job, student, test_images, torch_logits

__all__ = ["int8", "job", "student", "test_images", "torch_logits"]


@pytest.fixture
def int8(job: Callable[[str], Job]) -> Job:
    """An int8 job that knows the student's layers."""
    made = job("int8")
    model, card = load_pixels_to_logits(made.student_folder)
    return replace(made, layers=product_layers(model, card.image_size, card.channels))
