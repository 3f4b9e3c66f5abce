"""What search.yaml says: the target, the budget, and the space that is searched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from pipeline.core.documents import read_yaml
from pipeline.core.errors import PipelineError
from pipeline.core.params import (
    Count,
    Fraction,
    Group,
    Name,
    Positive,
    Real,
    Seed,
    Share,
    Text,
    Whole,
    differ,
    invalid,
    nearest,
)
from pipeline.networks.params import HardSwish, Student

SEARCH_FILE = Path("search.yaml")
SPACES = Path(__file__).parent / "spaces"
"""Spaces that search.yaml may name."""


class Target(Group):
    """What an artifact has to reach, and what it must not exceed."""

    backend: Name
    precision: Name = "int8"
    min_top1: Fraction | None = Field(None, description="on val, by its own runtime")
    min_balanced: Fraction | None = Field(None, description="balanced accuracy, in place of top-1")
    max_p50_ms: Positive | None = Field(None, description="of one image, on this machine")
    max_ratio: Positive | None = Field(None, description="of its p50 to the frozen reference's")
    max_kb: Positive | None = Field(None, description="1000 bytes that the runtime opens")

    @model_validator(mode="after")
    def _one_accuracy(self) -> Self:
        if (self.min_top1 is None) == (self.min_balanced is None):
            raise ValueError("a target has either `min_top1` or `min_balanced`")
        return self

    @property
    def metric(self) -> str:
        """The name of the accuracy that is searched for."""
        return "balanced accuracy" if self.min_top1 is None else "top-1"

    @property
    def accuracy(self) -> float:
        """That has to be reached."""
        found = self.min_balanced if self.min_top1 is None else self.min_top1
        assert found is not None
        return found

    @property
    def timed(self) -> bool:
        """Whether a candidate has to be fast."""
        return self.max_p50_ms is not None or self.max_ratio is not None


class Budget(Group):
    """When the search ends without having met the target."""

    hours: Annotated[Positive, Field(le=10_000)] = Field(description="of all workers together")
    trials: Count | None = Field(None, description="candidates, those included that are rejected")


class Span(Group):
    """All numbers between two."""

    low: Real
    high: Real
    log: bool = Field(True, description="whether small numbers are tried as often as large ones")

    @model_validator(mode="after")
    def _has_an_inside(self) -> Self:
        if not self.low < self.high:
            raise ValueError("`low` is below `high`")
        if self.log and self.low <= 0:
            raise ValueError("`low` is above 0, or `log` is false")
        return self


Numbers = (
    Span | Annotated[tuple[Real, ...], Field(min_length=1, max_length=1000), AfterValidator(differ)]
)


class Space(Group):
    """The dimensions of a search. One that is left out keeps what params.yaml says."""

    student: dict[Name, Student] | Annotated[tuple[Text, ...], AfterValidator(differ)] = Field(
        (), description="networks; or names of params.yaml's zoo, or of timm"
    )
    stem_stride: Annotated[tuple[Literal["auto", 1, 2], ...], AfterValidator(differ)] = ()
    hard_swish: Annotated[tuple[HardSwish, ...], AfterValidator(differ)] = ()
    epochs: Annotated[tuple[Count, ...], AfterValidator(differ)] = ()
    lr: Numbers | None = None
    weight_decay: Numbers | None = None
    label_smoothing: Numbers | None = Field(None, description="of cross entropy")
    temperature: Numbers | None = Field(None, description="of `kl`")
    kl: Numbers | None = Field(
        None, description="weight of `kl` in [0, 1]; cross entropy has the rest"
    )
    dist: Numbers | None = Field(None, description="weight of `dist`, which is added")
    int8_phase: Numbers | None = None

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if not self.dimensions():
            raise ValueError("the space is empty: it needs at least one dimension")
        return self

    def dimensions(self) -> dict[str, Span | tuple[Any, ...]]:
        """Those that are searched, by name."""
        found: dict[str, Span | tuple[Any, ...]] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            value = tuple(value) if isinstance(value, dict) else value
            if value:
                found[name] = value
        return found


class SearchParams(Group):
    """The content of search.yaml."""

    target: Target
    budget: Budget
    space: Space
    halving: Annotated[tuple[Share, ...], Field(min_length=1, max_length=10)] = Field(
        (0.25, 1.0), description="shares of a candidate's epochs, each a training from the start"
    )
    keep: Annotated[Real, Field(gt=1, le=100)] = Field(
        3.0, description="of so many candidates one is trained for longer"
    )
    seeds: Annotated[Whole, Field(ge=2, le=100)] = Field(
        3, description="trainings of a candidate that has to prove the target"
    )
    seed: Seed = Field(0, description="of the candidates that are drawn")
    storage: Text | None = Field(
        None, description="URL of a database for workers on several hosts; null: a file"
    )

    @model_validator(mode="after")
    def _ends_whole(self) -> Self:
        if sorted(self.halving) != list(self.halving) or self.halving[-1] != 1:
            raise ValueError("`halving` rises to 1")
        if not all(self.halving):
            raise ValueError("`halving` has shares above 0")
        return self


def read_search(file: Path = SEARCH_FILE) -> SearchParams:
    """The content of search.yaml; `space` may name one of `SPACES`.

    Raises:
        PipelineError: names every wrong key or value, and the nearest known name.
    """
    if not file.exists():
        shipped = ", ".join(sorted(path.stem for path in SPACES.glob("*.yaml")))
        raise PipelineError(
            "there is no such file",
            where=str(file),
            fix=f"write a target, a budget and a space ({shipped}): see docs/search.md",
        )
    tree = read_yaml(file)
    if isinstance(tree, dict) and isinstance(tree.get("space"), str):
        tree = tree | {"space": _shipped(tree["space"], file)}
    try:
        return SearchParams.model_validate(tree)
    except ValidationError as error:
        raise invalid(error, SearchParams, str(file)) from None


def _shipped(name: str, file: Path) -> Any:
    known = {path.stem: path for path in sorted(SPACES.glob("*.yaml"))}
    if name not in known:
        raise PipelineError(
            f"space: `{name}` is not shipped{nearest(name, known)}", where=str(file)
        )
    return read_yaml(known[name])
