from __future__ import annotations

import pytest

from pipeline.backends.base.params import Backends
from pipeline.backends.base.registry import (
    backend,
)
from pipeline.core.errors import PipelineError


def test_every_backend_of_the_parameters_is_registered() -> None:
    assert set(NAMES) == set(Backends.model_fields)
    assert [backend(name).name for name in NAMES] == list(NAMES)


def test_an_unknown_backend_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(PipelineError, match=r"no backend `openvine`.*\n.*openvino"):
        backend("openvine")
