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
    found: dict[str, EntryPoint] = {}
    # Installed packages come in the order of sys.path; the project's own parts shall stand first.
    for point in sorted(entry_points(group=f"{PROJECT}.{kind}"), key=_is_foreign):
        known = found.setdefault(point.name, point)
        if known.value != point.value:
            raise PipelineError(
                f"two installed packages register `{point.name}`: {known.value} and {point.value}",
                where=f"{PROJECT}.{kind}",
                fix="uninstall one of them",
            )
    return found


def _is_foreign(point: EntryPoint) -> bool:
    return point.dist is None or point.dist.name != PROJECT


def names(kind: str) -> tuple[str, ...]:
    """The names registered under `edgestill.<kind>`, the project's own first. Loads nothing."""
    return tuple(_found(kind))


def find(kind: str, name: str, where: str | None = None, its: type = object) -> Any:
    """The object registered as `name` under `edgestill.<kind>`.

    Args:
        kind: `backends`, `losses`, `rungs` or `sources`.
        name: as params.yaml has it.
        where: the key of params.yaml that names it, for the error.
        its: the type that it must have.

    Raises:
        PipelineError: for an unknown name, with the nearest known one, and for a part that cannot
            be imported or has another type.
    """
    found = _found(kind)
    if name not in found:
        raise PipelineError(
            f"there is no `{name}` among the {kind}{nearest(name, found)}",
            where=where,
            fix=None if found else "install the project: `make .venv/ready`, or `pip install -e .`",
        )
    try:
        part = found[name].load()
        if not isinstance(part, its):
            raise TypeError(f"not an object of the type {its.__name__}")
    except (ImportError, AttributeError, SyntaxError, TypeError) as error:
        raise PipelineError(
            f"`{name}` cannot be loaded: {error}",
            where=f"{PROJECT}.{kind}: {found[name].value}",
            fix="repair, reinstall or uninstall the package that registers it "
            "(this project: `make .venv/ready`)",
        ) from error
    return part
