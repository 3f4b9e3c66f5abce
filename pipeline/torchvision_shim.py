"""The one place that makes torchvision importable."""

from __future__ import annotations

import importlib
from types import ModuleType

from torch import library

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_torchvision() -> ModuleType:
    """Import torchvision, also beside a torch build that its native code does not fit.

    torchvision registers shape functions for two of its native operators on import. Its
    wheels fit the CUDA build of torch; beside the CPU build the native code does not
    load and the import fails, although nothing here needs the operators themselves.
    Declaring the two makes the import succeed: transforms, datasets and timm work.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in ("nms", "qnms"):
        library.define(f"torchvision::{name}", _SIGNATURE)
    return importlib.import_module("torchvision")
