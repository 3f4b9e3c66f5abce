"""Every change that this project makes to another library at run time.

Each function says which version needs it and why, and does nothing until it is called. Files that
ship in bundles without this package, `export/session.py` and `backends/openvino/run.py`, switch
off the telemetry of their runtimes by themselves, too.
"""

from __future__ import annotations

import ctypes
import getpass
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

_REPORTS_OFF = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.32, from its import on
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, by which timm loads weights
    "DVC_NO_ANALYTICS": "1",  # DVC 3, which the gate calls
}
"""Variables that keep libraries, and processes that are started from here, from reporting each use
to their makers. What other libraries here do was read in their code and seen in an empty home:
torch, timm, Lightning, LiteRT, TensorRT for RTX and DVCLive report nothing."""

_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""


def no_reports() -> None:
    """Let no library report to its maker, nor keep an identifier of the user for that.

    OpenVINO 2026 and NNCF 3 have no variable for it, but report only if openvino_telemetry can be
    imported.
    """
    os.environ.update(_REPORTS_OFF)
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def name_user() -> None:
    """Name a user without a passwd entry, as in `docker run --user 12345`.

    DVC 3.67, which the gate calls, asks for the name and fails with a `KeyError` there.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # until Python 3.12, and from 3.13 on
        os.environ["USER"] = f"uid-{os.getuid()}"


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
    each step. That takes a share of a training step's CPU time at every image size: with networks
    of depthwise convolutions a fifth at 28 and 64 pixels and a third at 224, with ResNet-18 2 to
    15%. The heap gets holes for it: at most 5% more resident memory up to 64 pixels with the first,
    10% at 224, with ResNet-18 16%. Other C libraries have no `mallopt`; nothing happens there.
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


@cache
def muon_by_shape() -> None:
    """Let timm 1.0's Muon orthogonalise all weights of a shape at once, with the same result.

    It calls every kernel for each weight by itself. The weights of a small network are too small to
    keep a GPU busy, and too many for the host.
    """
    import_timm()
    import torch
    from timm.optim import muon

    one_by_one = muon._single_tensor_muon

    def update(params: list[Any], grads: list[Any], momenta: list[Any], **options: Any) -> None:
        if options["conv_mode"] != "flatten":
            one_by_one(params, grads, momenta, **options)
            return
        rate, momentum = options["lr"], options["momentum"]
        torch._foreach_mul_(params, 1 - rate * options["weight_decay"])
        torch._foreach_lerp_(momenta, grads, 1 - momentum)
        nesterov = options["nesterov"]
        changes = torch._foreach_lerp(grads, momenta, momentum) if nesterov else momenta
        coefficients = muon.resolve_ns_coefficients(options["ns_coefficients"], muon._COEFFICIENTS)
        kept = {name: options[name] for name in ("eps", "safety_factor", "scale_eps")}
        of_shape: dict[tuple[int, int], list[int]] = {}
        for i, change in enumerate(changes):
            of_shape.setdefault((len(change), change[0].numel()), []).append(i)
        for shape, places in of_shape.items():
            matrices = torch.stack([changes[i].reshape(shape) for i in places])
            made = muon.zeropower_via_newtonschulz(
                matrices, options["ns_steps"], coefficients, **kept
            )
            how = options["adjust_lr_fn"]
            scale = -rate * (muon.get_lr_scale(torch.Size(shape), how) if how else 1.0)
            group = [params[i] for i in places]
            steps = [one.reshape(its.shape) for one, its in zip(made, group, strict=True)]
            if isinstance(scale, torch.Tensor):
                torch._foreach_mul_(steps, scale)
                torch._foreach_add_(group, steps)
            else:
                torch._foreach_add_(group, steps, alpha=scale)

    muon._single_tensor_muon = update  # type: ignore[assignment]


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
