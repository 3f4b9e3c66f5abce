"""Stage `compile_onnxruntime@S`: a student for ONNX Runtime, evaluated on the test split."""

from __future__ import annotations

from pipeline.backends.onnxruntime import OnnxRuntime
from pipeline.errors import run
from pipeline.measure.compile import compile_from_command_line


def main() -> None:
    compile_from_command_line(OnnxRuntime())


if __name__ == "__main__":
    run(main)
