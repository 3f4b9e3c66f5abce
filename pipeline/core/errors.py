"""The error that a user is meant to read, and how a command ends."""

from __future__ import annotations

import errno
import gc
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from pipeline.core.patches import name_user, no_reports
from pipeline.core.text import readable

DEFECT = 70
"""Exit code of a defect of this program: EX_SOFTWARE of BSD's sysexits."""


class PipelineError(Exception):
    """Something that the user can fix. Long texts are cut, whatever they quote.

    Args:
        what: what is wrong.
        where: the file, key or option.
        fix: what to do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = readable(what, 2000)
        super().__init__(self.what)
        self.where = where and readable(where, 500)
        self.fix = fix and readable(fix, 2000)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\n  what to do: {self.fix}" if self.fix else ""
        return f"{place}{self.what}{advice}"


def run(main: Callable[[], int | None]) -> None:
    """Run a command and exit the process.

    The exit code is what `main` returns (None: 0), 1 for a `PipelineError` or a full disk, 130 for
    an interrupt. Any other exception is a defect: its traceback is printed and the exit code is
    70, which differs from every verdict of the gate.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    no_reports()
    name_user()
    # Ctrl-C and kill end in the same way; shells may let background children ignore SIGINT.
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        code = main() or 0
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print(
            "interrupted: no incomplete file was left; run the same command again to continue",
            file=sys.stderr,
        )
        code = 130
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"error: {_full_disk(error)}", file=sys.stderr)
            code = 1
        else:
            traceback.print_exc()
            code = DEFECT
    gc.freeze()  # else collecting garbage in torch and timm at the interpreter's end takes 2 s
    sys.exit(code)


def _full_disk(error: OSError) -> PipelineError:
    return PipelineError(
        "the disk is full; no incomplete file was left",
        where=error.filename,
        fix="free some space (`dvc gc --workspace` drops old results) "
        "and run the same command again",
    )
