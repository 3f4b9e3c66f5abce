"""Stage `compile_tensorrt@S`: a student for TensorRT, evaluated on the test split."""

from __future__ import annotations

from pipeline.backends.tensorrt import TensorRT
from pipeline.errors import run
from pipeline.measure.compile import compile_from_command_line


def main() -> None:
    compile_from_command_line(TensorRT())


if __name__ == "__main__":
    run(main)
