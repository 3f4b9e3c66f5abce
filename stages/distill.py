"""Stage distill@S: one student, trained with the teachers' signals."""

from pipeline.distill.student import distill_student
from pipeline.errors import run
from pipeline.params import load_params
from pipeline.stage import student_argument


def main() -> None:
    params = load_params()
    distill_student(params, student_argument(params))


if __name__ == "__main__":
    run(main)
