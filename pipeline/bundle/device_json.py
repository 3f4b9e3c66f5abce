"""Reads a JSON file of a device, from which anything may come."""

from __future__ import annotations

from json import loads
from pathlib import Path
from typing import Any

from pipeline.bundle.device_values import one_line
from pipeline.core.errors import PipelineError

MOST_BYTES = 1 << 18
"""A thousand rounds of bench.py take 20 kB; a wrong item of a list costs half a kB of memory."""

MOST_LEVELS = 8
"""Of objects and lists in each other; scripts write five."""


def read_json(file: Path, fix: str) -> Any:
    """Decode a JSON file.

    Args:
        file: of at most `MOST_BYTES`, with each key once and at most `MOST_LEVELS` levels.
        fix: advice for an error.

    Raises:
        PipelineError: for a file that cannot be read, or is anything else.
    """
    try:
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise OSError(0, "it is a device or a pipe")
        with file.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise PipelineError(f"cannot be read: {error.strerror}", where=str(file)) from None
    if len(content) > MOST_BYTES:
        what = f"not a result: it is larger than {MOST_BYTES >> 10} KiB"
        raise PipelineError(what, where=str(file), fix=fix)
    try:
        decoded = loads(content, object_pairs_hook=_once)
        if _deeper(decoded, MOST_LEVELS):
            raise RecursionError
    except RecursionError:
        what = f"not a result: it has more than {MOST_LEVELS} levels"
        raise PipelineError(what, where=str(file), fix=fix) from None
    except ValueError as error:  # of the encoding as well as of the syntax
        what = f"not JSON: {one_line(str(error), 200)}"
        raise PipelineError(what, where=str(file), fix=fix) from None
    return decoded


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; `ValueError` for a key that stands twice in it, of which readers see either."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key `{key}` stands twice in an object")
        found[key] = value
    return found


def _deeper(value: Any, levels: int) -> bool:
    """Whether objects and lists lie in each other on more than `levels` levels."""
    level = [value]
    for _ in range(levels + 1):
        nested = [one for one in level if isinstance(one, dict | list)]
        level = [
            child for one in nested for child in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)
