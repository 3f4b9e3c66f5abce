"""Opens a .pte program by ExecuTorch on the CPU: in the lab and, as runtime.py, in bundles.

Needs NumPy, and ExecuTorch with torch, whose tensors its Python interface takes.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any, Callable

import numpy as np

_pools = [0]
"""Threads of each pool that this process has had; all programs share the last one."""


def load(
    model: str | bytes, threads: int, batch: int = 0
) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """A function of raw pixels uint8 [N, H, W, C] to logits float32 [N, classes].

    The program takes one image. Several images run one after the other.

    Args:
        model: path of the .pte file, or its content.
        threads: of the CPU.
        batch: images per call; the runner takes any number.
    """
    del batch
    execute = load_method(model, threads)

    def run(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if len(images) == 1:
            return execute(images)[0]
        return np.concatenate([execute(images[i : i + 1])[0] for i in range(len(images))])

    return run


def load_method(
    model: str | bytes, threads: int
) -> Callable[[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """A function of one input to all outputs of a program's method `forward`."""
    import torch

    method, program, pool = _open(model, threads)

    def execute(values: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        nonlocal method, program, pool
        if pool != len(_pools):  # the pool that it was opened with is gone
            method, program, pool = _open(model, threads)
        if not (values.flags.writeable and values.flags.c_contiguous):
            values = values.copy()  # torch warns of the one, ExecuTorch refuses the other
        return [output.numpy() for output in method([torch.from_numpy(values)])]

    return execute


def _open(model: str | bytes, threads: int) -> tuple[Any, Any, int]:
    """The method, its program, which it needs, and the number of the pool of threads."""
    import torch  # noqa: F401 - its libraries have to be there first

    # `executorch.runtime` takes these functions from here, but imports the compiler, too: several
    # seconds, 140 MB and a dozen packages.
    from executorch.extension.pybindings import _C

    if _pools[-1] != threads:
        _C._unsafe_reset_threadpool(threads)
        _pools.append(threads)
    load_program = _C._load_program_from_buffer if isinstance(model, bytes) else _C._load_program
    program = load_program(model, program_verification=_C.Verification.InternalConsistency)
    return program.load_method("forward"), program, len(_pools)


def versions() -> dict[str, str]:
    """The version of ExecuTorch by its package's name."""
    return {"executorch": importlib.metadata.version("executorch")}
