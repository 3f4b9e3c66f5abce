"""Stage `compile_tflite@S`: a student for LiteRT, evaluated on the test split."""

from __future__ import annotations

from pipeline.backends.tflite import TFLite
from pipeline.errors import run
from pipeline.measure.compile import compile_from_command_line
from pipeline.params import load_params


def main() -> None:
    compile_from_command_line(TFLite(load_params().backends.tflite.hard_swish))


if __name__ == "__main__":
    run(main)
