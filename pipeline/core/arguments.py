"""The command line of a stage script, with the names that the matrix of dvc.yaml passes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from pipeline.core.errors import PipelineError
from pipeline.core.params import nearest


def parse_names(*kinds: str) -> list[str]:
    """The values of `--KIND NAME` for each of `kinds`, in this order."""
    parser = argparse.ArgumentParser()
    for kind in kinds:
        parser.add_argument(f"--{kind}", required=True, metavar="NAME")
    parsed = vars(parser.parse_args())
    return [parsed[kind] for kind in kinds]


def require(name: str, known: Iterable[str], kind: str, where: str) -> None:
    """Raise `PipelineError` unless `name` is among the `known` ones of this `kind`."""
    names = list(known)
    if name not in names:
        raise PipelineError(f"there is no {kind} `{name}`{nearest(name, names)}", where=where)
