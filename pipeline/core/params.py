"""The machinery of params.yaml: each room has its groups as frozen types, each stage loads its own.

A group is one top-level key of the file; its type lives in `params.py` of the room that reads it. A
stage asks `load` for a `Selection` of groups. The overrides of the chosen profile are merged over
the groups before anything is checked, so all other modules see plain values.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pipeline.core.documents import read_yaml
from pipeline.core.errors import PipelineError
from pipeline.core.text import shorten, show

PARAMS_FILE = Path("params.yaml")

_MISTAKES = 8
"""Told at once; more of them would hide the first."""

_LOOKED_AT = 100
"""Of pydantic's complaints, several of which may be one mistake."""

_KNOWN = 40
"""Names that an error lists."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,63}")


def check_name(name: str) -> str:
    """`name`, if it can be one: else a `ValueError`."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            "a name has at most 64 letters, digits, `_` and `.`, and does not begin with `.`"
        )
    return name


def differ(names: tuple[Any, ...]) -> tuple[Any, ...]:
    """`names`, if none stands there twice: else a `ValueError`."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"names `{shorten(str(name))}` twice")
    return names


def among(names: Iterable[str], known: Iterable[str], group: str, where: str) -> None:
    """Raise `ValueError` unless what `group` enables is all `known`, the names of `where`."""
    listed = list(known)
    for name in names:
        if name not in listed:
            raise ValueError(
                f"`{group}.enabled` names `{shorten(name)}`, which is not in `{where}`"
                f"{nearest(name, listed)}"
            )


def _names_a_place(path: Any) -> Any:
    if isinstance(path, str):
        if not path.strip(" ./"):  # DVC would track the whole project, or everything
            raise ValueError("a folder inside or beside the project is needed")
        if len(path) > 1000:
            raise ValueError("a path has at most 1000 characters")
    return path


def _not_true(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("input should be a number or `auto`")
    return value


# A number is no bool and no text in quotes, and neither infinite nor NaN. Rooms narrow the bounds.
Whole = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Share = Annotated[Real, Field(ge=0, le=1)]
Fraction = Annotated[Real, Field(ge=0, lt=1)]
Positive = Annotated[Real, Field(gt=0, le=1e9)]
Amount = Annotated[Real, Field(ge=0, le=1e9)]
Count = Annotated[Whole, Field(ge=1, le=10**12)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
NoSwitch = BeforeValidator(_not_true)
"""Of literals: Python takes true for 1."""

Switch = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1, max_length=200)]
"""A name that another library or a source knows."""

Location = Annotated[Path, BeforeValidator(_names_a_place)]
Name = Annotated[str, AfterValidator(check_name)]
"""Names become parts of paths and of bundle names S-B-P: letters, digits, `_` and `.`, no `-`."""

Names = Annotated[tuple[Name, ...], Field(max_length=1000), AfterValidator(differ)]


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
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise PipelineError("expected a mapping of groups", where=str(path))
    tree = _apply_profile(tree, kind, path)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise invalid(error, kind, str(path)) from None


def invalid(
    error: ValidationError, kind: type[BaseModel], where: str, prefix: str = ""
) -> PipelineError:
    """The complaints of a pydantic error as one message, keys below `prefix`."""
    items = error.errors(include_url=False)
    lines = _complaints([dict(item) for item in items[:_LOOKED_AT]], kind, prefix)
    more = len(lines) - _MISTAKES + max(0, len(items) - _LOOKED_AT)
    lines = lines[:_MISTAKES] + ([f"and {more:,} more"] if more > 0 else [])
    return PipelineError("; ".join(lines), where=where, fix="correct the file")


def nearest(name: str, known: Iterable[object]) -> str:
    """`; did you mean ...?`, or the list of what is known."""
    names = [shorten(str(item)) for item in known]
    close = difflib.get_close_matches(shorten(name), names, n=1)
    if close:
        return f"; did you mean `{close[0]}`?"
    more = ", ..." if len(names) > _KNOWN else ""
    return f"; known are {', '.join(names[:_KNOWN])}{more}" if names else ""


def _apply_profile(tree: dict[str, Any], kind: type[Selection], path: Path) -> dict[str, Any]:
    tree = dict(tree)
    profiles = tree.pop("profiles", None)
    name = tree.get("profile")
    if not isinstance(profiles, dict) or not isinstance(name, str) or name not in profiles:
        known = profiles if isinstance(profiles, dict) else ()
        shown = shorten(name) if isinstance(name, str) else show(name)
        raise PipelineError(
            f"profile: `{shown}` is not in `profiles`{nearest(shown, known)}", where=str(path)
        )
    where = f"profiles.{shorten(name)}"
    overrides = _mapping(profiles[name], where, path)
    groups = {
        field: info.annotation
        for field, info in kind.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, Group)
    }
    known_groups = [group for group, its in groups.items() if its.overridable]
    odd = [group for group in overrides if group not in known_groups]
    if odd and kind.model_config.get("extra") == "forbid":
        group = shorten(odd[0])
        raise PipelineError(
            f"{where}.{group}: a profile cannot override this{nearest(group, known_groups)}",
            where=str(path),
            fix=f"overridable are {', '.join(known_groups)}",
        )
    chosen = {}
    for group in known_groups:
        if group not in overrides:
            raise PipelineError(
                f"{where}.{group} is missing", where=str(path), fix=f"write `{group}: {{}}`"
            )
        chosen[group] = _mapping(overrides[group], f"{where}.{group}", path)
        for key in groups[group].graph_keys:
            if key in chosen[group]:
                raise PipelineError(
                    f"{where}.{group}.{key}: it shapes the graph in dvc.yaml",
                    where=str(path),
                    fix=f"set {group}.{key} instead",
                )
    return _merge(tree, chosen)


def _mapping(value: Any, where: str, path: Path) -> dict[str, Any]:
    """What overrides something; nothing at all is `{}`, too."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise PipelineError(
            f"{where}: expected a mapping (found {show(value)})",
            where=str(path),
            fix="write `{}` where nothing changes",
        )
    return value


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _explain(error: dict[str, Any], kind: type[BaseModel], prefix: str) -> tuple[str, str]:
    """One pydantic error: where it is, as `group.key`, and what is wrong, with the nearest name."""
    keys, _ = _walk(kind, error["loc"])
    where = ".".join([*([prefix] if prefix else []), *map(shorten, keys)])
    if error["type"] == "extra_forbidden":
        return where, f"unknown key{nearest(keys[-1], _known_keys(kind, error['loc'][:-1]))}"
    if error["type"] == "missing":
        return where, "missing"
    message = error["msg"].removeprefix("Value error, ")
    return where, shorten(message[0].lower() + message[1:], 300)


def _complaints(errors: list[dict[str, Any]], kind: type[BaseModel], prefix: str) -> list[str]:
    """A text for each place: a value that fits none of several types is one mistake."""
    found: dict[str, list[str]] = {}
    given: dict[str, object] = {}
    for item in errors:
        where, what = _explain(item, kind, prefix)
        found.setdefault(where, []).append(what)
        given[where] = {} if item["type"] in ("missing", "extra_forbidden") else item["input"]
    texts = []
    for where, whats in found.items():
        if any(inner.startswith(f"{where}.") for inner in found) and where:
            continue  # the mistake is inside, where one of the types does fit
        alternatives = [what.removeprefix("input should be ") for what in whats[1:]]
        text = ", or ".join([whats[0], *dict.fromkeys(alternatives)])
        shown = (
            "" if isinstance(given[where], dict | BaseModel) else f" (found {show(given[where])})"
        )
        texts.append(f"{where}: {text}{shown}" if where else text + shown)
    return texts


def _known_keys(kind: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Field names of the group at `loc`; none where there is no group."""
    _, group = _walk(kind, loc)
    return list(group.model_fields) if _is_model(group) else []


def _walk(kind: type[BaseModel], loc: tuple[Any, ...]) -> tuple[list[str], Any]:
    """The keys in pydantic's location, and the type at its end.

    A location also has a part for each union, which names the alternative that was tried: by its
    type, or by the value of a key that tells them apart, which is the type's name in lower case.
    """
    keys, group = [], _plain(kind)
    for part in loc:
        if get_origin(group) in (Union, UnionType):
            group = next((one for one in get_args(group) if part in _named(one)), None)
        else:
            keys.append(str(part))
            fields = group.model_fields if _is_model(group) else {}
            if part in fields:
                group = fields[part].annotation
            else:  # an item of a dict or a tuple
                inner = [one for one in get_args(group) if one is not Ellipsis]
                group = inner[-1] if inner else None
        group = _plain(group)
    return keys, group


def _plain(kind: Any) -> Any:
    """A type without `Annotated`, and without `None` where one other type is left."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        others = [one for one in get_args(kind) if one is not NoneType]
        return _plain(others[0]) if len(others) == 1 else kind
    return kind


def _named(kind: Any) -> tuple[str, ...]:
    return (kind.__name__, kind.__name__.lower()) if _is_model(kind) else ()


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
