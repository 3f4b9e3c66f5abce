"""Stage `compile_openvino@S`: a student for OpenVINO, evaluated on the test split."""

from __future__ import annotations

from pipeline.backends.openvino import OpenVino
from pipeline.errors import run
from pipeline.measure.compile import compile_from_command_line


def main() -> None:
    compile_from_command_line(OpenVino())


if __name__ == "__main__":
    run(main)
