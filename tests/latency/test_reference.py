"""The frozen reference model."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from pipeline.core.errors import PipelineError
from pipeline.latency import reference


def test_the_reference_is_frozen_and_runs() -> None:
    model = reference.reference_model()
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = reference.reference_images()
    (logits,) = session.run(None, {"image": images})
    assert logits.shape == (len(images), 10)
    assert np.isfinite(logits).all() and logits.std() > 0


def test_a_reference_that_came_out_differently_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(reference, "DIGEST", "0" * 64)
    with pytest.raises(PipelineError, match="reference"):
        reference.reference_model()
