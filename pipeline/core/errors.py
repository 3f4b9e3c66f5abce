"""The one error a user is meant to read, and how a command ends."""

from __future__ import annotations

import errno
import gc
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

DEFECT = 70
"""Exit code of what should not happen: EX_SOFTWARE of BSD's sysexits."""


class PipelineError(Exception):
    """Something the user can mend: what is wrong, where, and what to do about it."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\n  what to do: {self.fix}" if self.fix else ""
        return f"{place}{self.what}{advice}"


def run(main: Callable[[], int | None]) -> None:
    """Run a command and exit: 0 done, 1 an error the user can mend, 130 interrupted.

    Anything else is a defect of this program: it keeps its traceback and exits with 70, which
    no gate's verdict is.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # The same clean end for Ctrl-C, also where a shell made its children deaf to it, and kill.
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        code = main() or 0
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print(
            "interrupted: nothing half-written was left; run the same command again to go on",
            file=sys.stderr,
        )
        code = 130
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            _tell_full_disk(error)
            code = 1
        else:
            traceback.print_exc()
            code = DEFECT
    gc.freeze()  # or the interpreter looks for garbage in all of torch and timm: 2 s at each end
    sys.exit(code)


def _tell_full_disk(error: OSError) -> None:
    where = f"{error.filename}: " if error.filename else ""
    print(
        f"error: {where}the disk is full; nothing half-written was left\n"
        "  what to do: free some space (`dvc gc --workspace` drops old results) "
        "and run the same command again",
        file=sys.stderr,
    )
