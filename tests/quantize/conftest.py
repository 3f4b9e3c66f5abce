"""The small student of the backends' tests, for the ladder."""

from tests.backends.conftest import job, student, test_images, torch_logits

__all__ = ["job", "student", "test_images", "torch_logits"]
