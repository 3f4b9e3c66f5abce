"""Stage train_teacher@T: a network whose knowledge the students get."""

from pipeline.distill.teacher import train_teacher
from pipeline.errors import run
from pipeline.params import load_params
from pipeline.stage import teacher_argument


def main() -> None:
    params = load_params()
    train_teacher(params, teacher_argument(params))


if __name__ == "__main__":
    run(main)
