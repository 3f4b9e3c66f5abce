"""What the stage scripts share: the names that DVC's matrix hands them."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from pipeline.errors import PipelineError
from pipeline.params import Params


def student_argument(params: Params) -> str:
    """`--student S` of the command line; `PipelineError` unless it is in the zoo."""
    return _argument("student", params.students.zoo)


def teacher_argument(params: Params) -> str:
    """`--teacher T` of the command line; `PipelineError` unless it is in the zoo."""
    return _argument("teacher", params.teachers.zoo)


def _argument(kind: str, known: Collection[str]) -> str:
    parser = argparse.ArgumentParser()
    parser.add_argument(f"--{kind}", required=True)
    name: str = getattr(parser.parse_args(), kind)
    if name not in known:
        raise PipelineError(
            f"there is no {kind} `{name}`; known are {', '.join(known)}",
            where=f"params.yaml: {kind}s.zoo",
        )
    return name
