"""Stage record_teacher: what the teachers say of every view that students will see."""

from pipeline.distill.signals import record_signals
from pipeline.errors import run
from pipeline.params import load_params


def main() -> None:
    record_signals(load_params())


if __name__ == "__main__":
    run(main)
