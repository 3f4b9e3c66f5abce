"""Inspects in a process of its own: a runtime may crash on a file that somebody else made.

LiteRT 2.3 does so on SVDF without XNNPACK, which comparing needs.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.core.errors import PipelineError, run


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    file: str
    against: str | None
    inputs: str | None
    shapes: tuple[str, ...]
    as_json: bool


def inspect(request: Request) -> int:
    """Print a report from another process, and return its exit code.

    Raises:
        PipelineError: where that process crashed.
    """
    words = [sys.executable, "-m", "pipeline.cli.inspect.process", json.dumps(asdict(request))]
    sys.stdout.flush()
    code = subprocess.run(words).returncode
    if code < 0:
        raise PipelineError(
            f"its runtime crashed on it ({signal.Signals(-code).name})",
            where=request.file,
            fix="try another version of the runtime, and report the file to its makers",
        )
    return code


def answer(request: Request) -> str:
    """The report, as text or JSON."""
    from pipeline.cli.inspect import show
    from pipeline.cli.inspect.against import compare
    from pipeline.cli.inspect.report import parse_shapes, read_inputs, report_on

    shapes = parse_shapes(request.shapes)
    report = report_on(Path(request.file), shapes)
    found, text = report.as_json(), list(show.lines(report))
    if request.against is not None:
        inputs = read_inputs(Path(request.inputs)) if request.inputs else None
        comparison = compare(report, report_on(Path(request.against), {}), shapes, inputs)
        found |= {"against": comparison.as_json()}
        text += show.compared(comparison)
    return json.dumps(found, indent=2, ensure_ascii=False) if request.as_json else "\n".join(text)


def main() -> None:
    """Print the answer to the request in the only argument."""
    print(answer(Request(**json.loads(sys.argv[1]))))


if __name__ == "__main__":
    run(main)
