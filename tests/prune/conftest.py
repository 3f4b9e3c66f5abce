"""A project folder with a taught student, for the tests of this room."""

from tests.training.conftest import configured, fashion, folder  # noqa: F401 - fixtures
