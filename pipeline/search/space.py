"""Candidates: what the dimensions of a space stand for in a student and its recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipeline.core.errors import PipelineError
from pipeline.core.params import invalid
from pipeline.distill.params import Distill, own_recipe
from pipeline.networks.params import Student, Students
from pipeline.search.params import SEARCH_FILE, Space, Span

if TYPE_CHECKING:
    from optuna.trial import Trial

Choice = dict[str, Any]
"""A point of the space: by dimension, its value."""

_OF_NETWORK = ("stem_stride", "hard_swish")
_OF_TRAINING = ("lr", "weight_decay", "label_smoothing")
_OF_LOSSES = ("temperature", "kl", "dist")


def suggest(trial: Trial, space: Space) -> Choice:
    """Let a trial of Optuna choose a point of the space."""
    choice: Choice = {}
    for name, values in space.dimensions().items():
        if isinstance(values, Span):
            choice[name] = trial.suggest_float(name, values.low, values.high, log=values.log)
        else:
            choice[name] = trial.suggest_categorical(name, values)
    return choice


def networks(space: Space, students: Students) -> dict[str, Student]:
    """The networks of the dimension `student`; without it the enabled students of params.yaml.

    Args:
        space: the space.
        students: of params.yaml, whose zoo the space may name; other names are timm's.

    Raises:
        PipelineError: where the dimension is left out and several students are enabled.
    """
    if isinstance(space.student, dict) and space.student:
        return space.student
    if space.student:
        return {name: students.zoo.get(name) or Student(arch=name) for name in space.student}
    if len(students.enabled) > 1:
        raise PipelineError(
            "several students are enabled, and the space has no dimension `student`",
            where=f"{SEARCH_FILE}: space",
            fix=f"add `student: [{', '.join(students.enabled)}]`",
        )
    return {name: students.zoo[name] for name in students.enabled}


def student_of(choice: Choice, known: dict[str, Student], distill: Distill) -> Student:
    """The student that a point of the space stands for, with a recipe of its own.

    Args:
        choice: the point.
        known: the networks by name, see `networks`.
        distill: what counts where the space says nothing.

    Raises:
        PipelineError: where a value does not fit.
    """
    (only,) = known if "student" not in choice else (choice["student"],)
    tree = known[only].model_dump()
    tree |= {name: choice[name] for name in _OF_NETWORK if name in choice}
    recipe = dict(tree["recipe"])
    recipe |= {name: choice[name] for name in ("epochs", "int8_phase") if name in choice}
    training = {name: choice[name] for name in _OF_TRAINING if name in choice}
    recipe["training"] = recipe.get("training", {}) | training
    if any(name in choice for name in _OF_LOSSES):
        own, _ = own_recipe(only, known[only], distill)
        recipe["losses"] = _losses(choice, own)
    try:
        return Student.model_validate(tree | {"recipe": recipe})
    except ValidationError as error:
        raise invalid(error, Student, str(SEARCH_FILE), f"space.student.{only}") from None


def check_values(space: Space, known: dict[str, Student], distill: Distill) -> None:
    """Raise `PipelineError` for a value of the space that no recipe may have.

    Args:
        space: each of its dimensions is checked by itself, a span at its ends.
        known: the networks by name, see `networks`.
        distill: what counts where the space says nothing.
    """
    ends = {
        name: (its.low, its.high) if isinstance(its, Span) else its
        for name, its in space.dimensions().items()
    }
    first = {name: values[0] for name, values in ends.items()}
    for name, value in ((name, value) for name, values in ends.items() for value in values):
        student = student_of(first | {name: value}, known, distill)
        try:
            own_recipe("", student, distill)
        except ValueError as error:
            text = str(error).replace("students.zoo..recipe.", "")
            raise PipelineError(
                f"{value} is no value of it: {text}", where=f"{SEARCH_FILE}: space.{name}"
            ) from None


def _losses(choice: Choice, distill: Distill) -> list[dict[str, Any]]:
    """`kl` and cross entropy, whose weights add up to 1, and all other terms of `distill`."""
    terms = {term.name: term.model_dump(exclude_defaults=True) for term in distill.losses}
    kl = terms.pop("kl", {"name": "kl", "weight": 0.9, "options": {"temperature": 4.0}})
    alone = terms.pop("cross_entropy", {"name": "cross_entropy", "weight": 1 - kl["weight"]})
    if "kl" in choice:
        kl, alone = kl | {"weight": choice["kl"]}, alone | {"weight": 1 - choice["kl"]}
    if "temperature" in choice:
        kl = kl | {"options": kl.get("options", {}) | {"temperature": choice["temperature"]}}
    if "dist" in choice:
        terms["dist"] = terms.get("dist", {"name": "dist"}) | {"weight": choice["dist"]}
    return [term for term in (kl, alone, *terms.values()) if term["weight"] != 0]
