"""Stage distill@S: one student, trained with the teachers' logits."""

from pipeline.core.arguments import parse_names, require
from pipeline.core.errors import run
from pipeline.core.params import load
from pipeline.distill.params import DistillParams
from pipeline.distill.student import distill_student


def main() -> None:
    (student,) = parse_names("student")
    params = load(DistillParams)
    require(student, params.students.zoo, "student", "params.yaml: students.zoo")
    distill_student(params, student)


if __name__ == "__main__":
    run(main)
