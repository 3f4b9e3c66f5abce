"""Checkpoints of runs, from which a stopped run is resumed."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.core.files import write_whole
from pipeline.networks.build import tool_versions

CHECKPOINTS = Path(".work/checkpoints")
"""Outside the stages' outputs, which DVC deletes before it runs a stage."""

_DIGEST_BYTES = 32


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
    """Write tensors and plain values behind their digest; the file appears whole."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_whole(checkpoint_file(key), _digest(key, content) + content)


def load_checkpoint(key: str, device: torch.device) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote for this key, on `device`; None where there is nothing.

    A checkpoint that is damaged or of another run is none either, and a message says so: the run
    starts again and ends with the same bits, where an error could only ask to delete the file.
    """
    file = checkpoint_file(key)
    if not file.exists():
        return None
    written = file.read_bytes()
    digest, content = written[:_DIGEST_BYTES], written[_DIGEST_BYTES:]
    if digest != _digest(key, content):
        print(
            f"warning: {file}: the checkpoint is damaged or of another run; training starts again",
            file=sys.stderr,
        )
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True, map_location=device)
    return state


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).digest()


def forget_checkpoint(key: str) -> None:
    """Delete the checkpoint; call it once the outputs of the run are in place."""
    checkpoint_file(key).unlink(missing_ok=True)
