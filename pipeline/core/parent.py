"""DVC's process, where it started this one as a stage: it is looked for before slow imports."""

from __future__ import annotations

import os
from pathlib import Path


def dvc() -> int:
    """The parent of this process, or the parent of the shell in between.

    DVC starts a stage by the user's shell. Most shells replace themselves by their only command;
    Debian's sh waits for it.
    """
    parent = os.getppid()
    try:
        stat = Path(f"/proc/{parent}/stat").read_text()
    except OSError:  # not Linux, or it has just ended
        return parent
    name, fields = stat.partition("(")[2].rsplit(") ", 1)
    shell = Path(os.environ.get("SHELL") or "/bin/sh").name
    return int(fields.split()[1]) if name == shell else parent


STARTED_BY = dvc()
"""As this process began."""
