"""What arms.yaml says: the study's seeds, and the losses of each arm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from pipeline.core.documents import read_yaml
from pipeline.core.params import Group, Name, Seed, invalid

ARMS = Path("arms.yaml")


class Arms(Group):
    """The content of arms.yaml; the names of arms become parts of paths."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    arms: dict[Name, list[dict[str, Any]]]


def read_arms() -> tuple[tuple[int, ...], dict[str, list[dict[str, Any]]]]:
    """The seeds, and by arm the terms of its loss, as params.yaml has them in `distill.losses`."""
    try:
        found = Arms.model_validate(read_yaml(ARMS))
    except ValidationError as error:
        raise invalid(error, Arms, str(ARMS)) from None
    return found.seeds, found.arms
