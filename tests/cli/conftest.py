"""Models of other people's tools, made once for all tests of `inspect`."""

from __future__ import annotations

import pytest

from tests.cli.foreign import Foreign, Make


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    return Foreign(tmp_path_factory.mktemp("foreign"))
