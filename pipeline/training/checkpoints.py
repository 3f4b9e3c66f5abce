"""Checkpoints of runs, from which a stopped run is resumed."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from pipeline.core.files import write_whole
from pipeline.networks.build import tool_versions

CHECKPOINTS = Path(".work/checkpoints")
"""Outside the stages' outputs, which DVC deletes before it runs a stage."""


def run_key(*parts: object) -> str:
    """A digest of everything that decides a run: `parts`, every Python file here, versions.

    A run that was stopped is resumed only where its key is the same.
    """
    digest = hashlib.sha256(repr((parts, tool_versions())).encode())
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:20]


def checkpoint_file(key: str) -> Path:
    """Where the run with this key keeps its checkpoint."""
    return CHECKPOINTS / f"{key}.pt"


def save_checkpoint(key: str, state: dict[str, Any]) -> None:
    """Write tensors and plain values; the file appears whole."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(checkpoint_file(key), buffer.getvalue())


def load_checkpoint(key: str, device: torch.device) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote for this key, on `device`; None where there is nothing."""
    file = checkpoint_file(key)
    if not file.exists():
        return None
    state: dict[str, Any] = torch.load(file, weights_only=True, map_location=device)
    return state


def forget_checkpoint(key: str) -> None:
    """Delete the checkpoint; call it once the outputs of the run are in place."""
    checkpoint_file(key).unlink(missing_ok=True)
