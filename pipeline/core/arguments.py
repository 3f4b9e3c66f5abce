"""The names that a stage of a matrix in dvc.yaml is for."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable

from pipeline.core.errors import PipelineError
from pipeline.core.params import check_name, nearest

STAGE = "DVC_STAGE"
"""Environment variable in which DVC names the stage that it runs: `distill@STUDENT`."""


def parse_names(*kinds: str) -> list[str]:
    """The name of each of `kinds`, in this order: the values of `--KIND NAME`, or those of DVC.

    No command in dvc.yaml holds a name, because DVC hands its commands to a shell. It sets
    `DVC_STAGE` to the stage's name and the names of the matrix, STAGE@NAME-NAME, in this order.

    Raises:
        PipelineError: for what cannot be a name.
    """
    group, _, item = os.environ.get(STAGE, "").rpartition("@")
    given: list[str | None] = [*item.split("-", len(kinds) - 1)] if group else []
    if len(given) != len(kinds):  # by hand, or in a stage that is no matrix of these kinds
        given = [None] * len(kinds)
    parser = argparse.ArgumentParser()
    for kind, name in zip(kinds, given, strict=True):
        parser.add_argument(f"--{kind}", required=name is None, default=name, metavar="NAME")
    parsed = vars(parser.parse_args())
    names = [parsed[kind] for kind in kinds]
    for kind, name in zip(kinds, names, strict=True):
        try:
            check_name(name)
        except ValueError as error:
            raise PipelineError(f"`{name}`: {error}", where=f"--{kind}") from None
    return names


def require(name: str, known: Iterable[str], kind: str, where: str) -> None:
    """Raise `PipelineError` unless `name` is among the `known` ones of this `kind`."""
    names = list(known)
    if name not in names:
        raise PipelineError(f"there is no {kind} `{name}`{nearest(name, names)}", where=where)
