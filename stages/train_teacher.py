"""Stage train_teacher: the network whose knowledge the students get."""

from pipeline.distill.run import train_teacher
from pipeline.errors import run
from pipeline.params import load_params


def main() -> None:
    train_teacher(load_params())


if __name__ == "__main__":
    run(main)
