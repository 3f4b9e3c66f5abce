"""The error that a user is meant to read, and how a command ends."""

from __future__ import annotations

import errno
import gc
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.core import parent
from pipeline.core.patches import name_user, no_reports
from pipeline.core.text import readable

DEFECT = 70
"""Exit code of a defect of this program: EX_SOFTWARE of BSD's sysexits."""

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)

_STARTED_BY_DVC = "DVC_STAGE"
"""Environment variable that DVC sets for the commands of stages."""

WATCH_SECONDS = 0.5
"""Time between two looks at DVC's process."""


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


@contextmanager
def refusals(
    tool: str, kinds: tuple[type[Exception], ...] = (Exception,), *, where: str, fix: str
) -> Iterator[None]:
    """Turn what a converter raises into a `PipelineError` with the first line of its message.

    A converter raises exceptions of any type about a network that it cannot convert, and one of
    this program has to remain a traceback: enclose nothing but the converter's calls, or name
    `kinds`. A full disk or memory is not a refusal and passes.

    Args:
        tool: its name.
        kinds: types of exceptions that the converter raises.
        where: what was being converted for what.
        fix: what to do about it.
    """
    try:
        yield
    except (PipelineError, OSError, MemoryError):
        raise
    except kinds as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        text = re.sub(r"/\S+/site-packages/", "", str(root))  # where the converter is installed
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        said = lines[0] if lines else type(root).__name__
        raise PipelineError(f"{tool} refuses the network: {said}", where=where, fix=fix) from error


def run(main: Callable[[], int | None]) -> None:
    """Run a command and exit the process.

    The exit code is what `main` returns (None: 0), 1 for a `PipelineError`, a full disk or a file
    that this user may not read or write, 130 for an interrupt. Any other exception is a defect:
    its traceback is printed and the exit code is 70, which differs from every verdict of the gate.

    A stage that DVC started ends, as by Ctrl-C, when DVC is gone: it would write into a project
    where the next `dvc repro` runs the same stage. A command that a person started goes on after
    its shell has ended.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    no_reports()
    name_user()
    # Ctrl-C and kill end in the same way; shells may let background children ignore SIGINT.
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if _STARTED_BY_DVC in os.environ:
        threading.Thread(target=_end_with_dvc, daemon=True).start()
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
        elif isinstance(error, OSError) and error.errno in _FORBIDDEN and error.filename:
            print(f"error: {_forbidden(error)}", file=sys.stderr)
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


def _forbidden(error: OSError) -> PipelineError:
    return PipelineError(
        f"this user may not read or write it ({error.strerror})",
        where=error.filename,
        fix="change its owner or its permissions, or mount its file system to be written",
    )


def _end_with_dvc() -> None:
    """Interrupt this process once DVC no longer runs."""
    while parent.dvc() == parent.STARTED_BY:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
