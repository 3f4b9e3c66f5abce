"""Every change that this project makes to another library at run time.

Each function says which version needs it and why, and does nothing until it is called. One more
patch has to live elsewhere: `backends/openvino/run.py` ships in bundles without this package and
switches off OpenVINO's telemetry by itself.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""


def import_torchvision() -> ModuleType:
    """Import torchvision, also beside a build of torch that its native code does not fit.

    torchvision 0.28 registers shape functions for two of its native operators on import. Its
    wheels fit the CUDA build of torch. Beside the CPU build the native code does not load and the
    import fails, although nothing here needs the operators. Declaring the two makes the import
    succeed: transforms, datasets and timm work.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    from torch import library

    for name in ("nms", "qnms"):
        library.define(f"torchvision::{name}", _NMS)
    return importlib.import_module("torchvision")


@contextmanager
def torchvision_unpacks_by(unpack: Callable[[Path, Path], None]) -> Iterator[None]:
    """Within this, torchvision's sets unpack tar and zip archives by `unpack(archive, folder)`.

    torchvision 0.28 believes every path in an archive, and gives no choice; before Python 3.14 a
    tar archive may then write anywhere.
    """
    from torchvision.datasets import utils

    originals = dict(utils._ARCHIVE_EXTRACTORS)
    for kind in (".tar", ".zip"):
        utils._ARCHIVE_EXTRACTORS[kind] = lambda archive, folder, _compression: unpack(
            Path(archive), Path(folder)
        )
    try:
        yield
    finally:
        utils._ARCHIVE_EXTRACTORS.update(originals)


@cache
def import_timm() -> ModuleType:
    """Import timm, which imports torchvision: see `import_torchvision`."""
    import_torchvision()
    return importlib.import_module("timm")


@cache
def keep_freed_memory() -> None:
    """Tell glibc's malloc to keep what torch 2.13 frees for the tensors of the next step.

    By default malloc returns tensors of some MB to the system, which zeroes their pages again for
    each step: a twelfth of the training time on two cores, and a fifth of evaluation's. Other C
    libraries have no `mallopt`; nothing happens there.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
        libc.mallopt(_M_MMAP_MAX, 0)


@cache
def muon_in_float32() -> None:
    """Let timm 1.0's Muon orthogonalise in float32 instead of bfloat16.

    timm gives no choice, and a CPU without bfloat16 instructions takes a hundred times as long
    for it as for float32.
    """
    import_timm()
    import torch
    from timm.optim import muon

    original = muon.zeropower_via_newtonschulz
    muon.zeropower_via_newtonschulz = partial(original, dtype=torch.float32)


@contextmanager
def conv2d(replacement: Callable[..., Any]) -> Iterator[None]:
    """Within this, `torch.nn.functional.conv2d` is `replacement`.

    torch 2.13's `TorchFunctionMode` would do without replacing it by name, but costs every other
    call, 3% of a training step.
    """
    from torch.nn import functional

    original = functional.conv2d
    functional.conv2d = replacement
    try:
        yield
    finally:
        functional.conv2d = original
