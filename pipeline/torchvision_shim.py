"""The one place that makes torchvision importable."""

from __future__ import annotations

import importlib
from types import ModuleType

from torch import library

_library: library.Library | None = None


def import_torchvision() -> ModuleType:
    """Import torchvision, also beside a torch build that its native library does not fit.

    torchvision registers shape functions for two of its native operators on import. Its
    wheels fit the CUDA build of torch; beside the CPU build the native library does not
    load and the import fails, although nothing here needs the operators themselves.
    Declaring the two makes the import succeed: transforms, datasets and timm work.
    """
    global _library
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _library is not None:
            raise
    _library = library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        signature = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        _library.define(signature)  # type: ignore[no-untyped-call]
    return importlib.import_module("torchvision")
