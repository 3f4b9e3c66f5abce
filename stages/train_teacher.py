"""Stage train_teacher@T: a network that students learn from."""

from pipeline.core.arguments import parse_names, require
from pipeline.core.errors import run
from pipeline.core.params import load
from pipeline.training.params import TeacherParams
from pipeline.training.teacher import train_teacher


def main() -> None:
    (teacher,) = parse_names("teacher")
    params = load(TeacherParams)
    require(teacher, params.teachers.zoo, "teacher", "params.yaml: teachers.zoo")
    train_teacher(params, teacher)


if __name__ == "__main__":
    run(main)
