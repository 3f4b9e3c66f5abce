"""The machinery of params.yaml: each room has its groups as frozen types, each stage loads its own.

A group is one top-level key of the file; its type lives in `params.py` of the room that reads it. A
stage asks `load` for a `Selection` of groups. The overrides of the chosen profile are merged over
the groups before anything is checked, so all other modules see plain values.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.errors import PipelineError

PARAMS_FILE = Path("params.yaml")

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]
"""Names become parts of paths and of bundle names S-B-P: letters, digits, `_` and `.`, no `-`."""


class Group(BaseModel):
    """One group of params.yaml, or a part of one. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    overridable: ClassVar[bool] = False
    """Whether a profile may override this group. dvc.yaml tracks `profiles.<profile>.<group>` of
    such groups, so every profile names each of them (`{}` where it changes nothing)."""

    graph_keys: ClassVar[tuple[str, ...]] = ()
    """Keys that shape the graph in dvc.yaml and are therefore the same in every profile."""


class Selection(BaseModel):
    """The groups that one stage reads; subclasses name them as fields. Other groups are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


S = TypeVar("S", bound=Selection)


def load(kind: type[S], path: Path = PARAMS_FILE) -> S:
    """Read the groups of `kind` from params.yaml, with the chosen profile merged in.

    Args:
        kind: which groups to read. A kind that forbids unknown keys also checks that no profile
            overrides an unknown group.
        path: the file.

    Returns:
        The groups, every value checked.

    Raises:
        PipelineError: names every wrong key or value, where it stands, and the nearest known
            name for an unknown one.

    Example:
        >>> class Wanted(Selection):
        ...     seed: Seed
        ...     data: Data
        >>> load(Wanted).data.image_size
        'auto'
    """
    tree = _apply_profile(_read(path), kind, path)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise invalid(error, kind, str(path)) from None


def invalid(
    error: ValidationError, kind: type[BaseModel], where: str, prefix: str = ""
) -> PipelineError:
    """All complaints of a pydantic error as one message, keys below `prefix`."""
    lines = [_explain(dict(item), kind, prefix) for item in error.errors()]
    return PipelineError("; ".join(lines), where=where, fix="correct the file")


def nearest(name: str, known: Iterable[object]) -> str:
    """`; did you mean ...?`, or the list of what is known."""
    names = [str(item) for item in known]
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known are {', '.join(names)}" if names else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise PipelineError(
            "there is no such file", where=str(path), fix="run from the project's root"
        ) from None
    except yaml.YAMLError as error:
        raise PipelineError(f"not valid YAML: {error}", where=str(path)) from None
    if not isinstance(tree, dict):
        raise PipelineError("expected a mapping of groups", where=str(path))
    return tree


def _apply_profile(tree: dict[str, Any], kind: type[Selection], path: Path) -> dict[str, Any]:
    tree = dict(tree)
    profiles = tree.pop("profiles", None)
    name = tree.get("profile")
    if not isinstance(profiles, dict) or not isinstance(name, str) or name not in profiles:
        raise PipelineError(
            f"profile: `{name}` is not in `profiles`{nearest(str(name), profiles or {})}",
            where=str(path),
        )
    overrides = profiles[name] or {}
    groups = {
        field: info.annotation
        for field, info in kind.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, Group)
    }
    known = [group for group, its in groups.items() if its.overridable]
    odd = [group for group in overrides if group not in known]
    if odd and kind.model_config.get("extra") == "forbid":
        raise PipelineError(
            f"profiles.{name}.{odd[0]}: a profile cannot override this{nearest(odd[0], known)}",
            where=str(path),
            fix=f"overridable are {', '.join(known)}",
        )
    for group in known:
        if group not in overrides:
            raise PipelineError(
                f"profiles.{name}.{group} is missing", where=str(path), fix=f"write `{group}: {{}}`"
            )
        for key in groups[group].graph_keys:
            if key in (overrides[group] or {}):
                raise PipelineError(
                    f"profiles.{name}.{group}.{key}: it shapes the graph in dvc.yaml",
                    where=str(path),
                    fix=f"set {group}.{key} instead",
                )
    return _merge(tree, {group: overrides[group] for group in known})


def _merge(base: dict[str, Any], over: dict[str, Any] | None) -> dict[str, Any]:
    merged = dict(base)
    for key, value in (over or {}).items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _explain(error: dict[str, Any], kind: type[BaseModel], prefix: str) -> str:
    """One pydantic error as `group.key: what is wrong`, with the nearest known name."""
    keys = [*([prefix] if prefix else []), *(str(part) for part in error["loc"])]
    where = f"{'.'.join(keys)}: " if keys else ""  # a check of several groups has no key
    if error["type"] == "extra_forbidden":
        return f"{where}unknown key{nearest(keys[-1], _known_keys(kind, error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"{where}missing"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f" (found {given!r})" if not isinstance(given, dict | BaseModel) else ""
    return f"{where}{message[0].lower()}{message[1:]}{shown}"


def _known_keys(kind: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Field names of the group at `loc`, found by walking the annotations of `kind`."""
    group: Any = kind
    for part in loc:
        fields = group.model_fields if _is_model(group) else {}
        if part in fields:
            group = fields[part].annotation
        else:  # an item of a dict or a tuple: its value type is the group inside
            group = next((arg for arg in get_args(group) if _is_model(arg)), None)
    return list(group.model_fields) if _is_model(group) else []


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
