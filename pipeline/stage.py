"""What the stage scripts share: the student and precision that DVC's matrix hands them."""

from __future__ import annotations

import argparse

from pipeline.errors import PipelineError
from pipeline.params import Params


def student_argument(params: Params) -> str:
    """`--student S` of the command line; `PipelineError` unless it is in the zoo."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--student", required=True)
    student: str = parser.parse_args().student
    if student not in params.students.zoo:
        raise PipelineError(
            f"there is no student `{student}`; known are {', '.join(params.students.zoo)}",
            where="params.yaml: students.zoo",
        )
    return student
