"""Parts that a package registers by name: backends, losses, rungs and data sources.

The project's own parts and those of other installed packages are found in the same way, by the
entry points of the groups `edgestill.backends`, `edgestill.losses`, `edgestill.rungs` and
`edgestill.sources`. docs/extending.md shows an example of each.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pipeline.core.errors import PipelineError
from pipeline.core.params import nearest

PROJECT = "edgestill"


@cache
def _found(kind: str) -> dict[str, EntryPoint]:
    own = [point for point in entry_points(group=f"{PROJECT}.{kind}")]
    # Installed packages come in the order of sys.path; the project's own parts stand first.
    own.sort(key=lambda point: point.dist is None or point.dist.name != PROJECT)
    found: dict[str, EntryPoint] = {}
    for point in own:
        known = found.setdefault(point.name, point)
        if known.value != point.value:
            raise PipelineError(
                f"two installed packages register `{point.name}`: {known.value} and {point.value}",
                where=f"{PROJECT}.{kind}",
                fix="uninstall one of them",
            )
    return found


def names(kind: str) -> tuple[str, ...]:
    """The names registered under `edgestill.<kind>`, the project's own first. Loads nothing."""
    return tuple(_found(kind))


def find(kind: str, name: str) -> Any:
    """What is registered as `name` under `edgestill.<kind>`.

    Args:
        kind: `backends`, `losses`, `rungs` or `sources`.
        name: as params.yaml has it.

    Raises:
        PipelineError: for an unknown name, with the nearest known one.
    """
    found = _found(kind)
    if name not in found:
        raise PipelineError(
            f"there is no `{name}` among the {kind}{nearest(name, found)}",
            fix=None if found else "install the project: `make .venv/ready`, or `pip install -e .`",
        )
    try:
        return found[name].load()
    except (ImportError, AttributeError) as error:
        raise PipelineError(
            f"`{name}` cannot be loaded: {error}",
            where=f"{PROJECT}.{kind}: {found[name].value}",
            fix="install its package again: `make .venv/ready`, or `pip install -e .`",
        ) from error
