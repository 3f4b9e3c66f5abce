"""The stage `quantize_aware`, which knows without importing torch whether it has anything to do."""

from __future__ import annotations

from pipeline.core.files import whole_folder
from pipeline.distill.params import DistillParams
from pipeline.export.params import Export
from pipeline.int8.params import QUANTIZE_AWARE as RUNG
from pipeline.int8.params import Quantize, QuantizeAware
from pipeline.int8.records import (
    METRICS_FOLDER,
    QUANTIZE_AWARE,
    STATUS,
    QuantizeAwareMetrics,
    QuantizeAwareStatus,
)

NOT_ASKED = f"`{RUNG}` is not among quantize.rungs"


class QuantizeAwareParams(DistillParams):
    """What the stage `quantize_aware` reads."""

    export: Export
    quantize: Quantize
    quantize_aware: QuantizeAware


def train_quantize_aware(params: QuantizeAwareParams, name: str) -> float | str:
    """Stage `quantize_aware@S`: models/quantize_aware/S/ and metrics/quantize_aware/S.json.

    The folder gets the float weights of models/students/S after training under int8's rounding,
    their card, and `model.onnx`, which is quantized like the student's. Where `quantize.rungs` does
    not name the rung, nothing is trained; where training diverges, nothing is kept. status.json
    then says so, and the rung fails without ending the ladder.

    Args:
        params: what the stage reads.
        name: the student S.

    Returns:
        Top-1 on val under the rounding, a fraction, or why there are no weights.

    Raises:
        PipelineError: see `quantize_aware.train`.
    """
    if RUNG in params.quantize.rungs:
        from pipeline.int8.quantize_aware import train  # it takes seconds to import torch

        return train(params, name)
    record_untrained(name, NOT_ASKED)
    return NOT_ASKED


def record_untrained(name: str, reason: str) -> None:
    """Write the folder and the metrics of a student `name` that has no weights from this stage."""
    with whole_folder(QUANTIZE_AWARE / name) as scratch:
        QuantizeAwareStatus(trained=False, reason=reason).write(scratch / STATUS)
    QuantizeAwareMetrics(val_top1=None).write(METRICS_FOLDER / f"{name}.json")
