"""Where the trials of a search are kept: a journal on one host, a database for several."""

from __future__ import annotations

import fcntl
import os
import warnings
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from pipeline.core.errors import PipelineError
from pipeline.search.trials import queue_again

NAME = "search"
HEARTBEAT_SECONDS = 30
"""Of workers on a database. One that was silent for three of them is taken for dead."""


class Lock(BaseJournalFileLock):
    """A lock that the system takes back however its process ends."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor = -1

    def acquire(self) -> bool:
        self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        os.close(self._descriptor)


def open_storage(url: str | None, journal: Path) -> BaseStorage:
    """The journal, or the database at `url`.

    Args:
        url: of SQLAlchemy; None for the journal.
        journal: its file.

    Raises:
        PipelineError: for a database that cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if url is None:
        journal.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(journal.with_suffix(".lock"))
        _mend(journal, lock)
        return JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # of Optuna about heartbeats
            return RDBStorage(
                url,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=3 * HEARTBEAT_SECONDS,
                heartbeat_stale_trial_callback=queue_again,
            )
    except Exception as error:  # of SQLAlchemy, of the driver, or a driver that is not installed
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise PipelineError(
            f"the database cannot be used: {said[0]}",
            where="search.yaml: storage",
            fix="check the URL and that the server runs; for PostgreSQL install the driver: "
            "pip install 'psycopg[binary]' and begin the URL with postgresql+psycopg://",
        ) from None


def _mend(journal: Path, lock: Lock) -> None:
    """Cut off a last line that a killed process left half-written."""
    if not journal.exists():
        return
    lock.acquire()
    try:
        with journal.open("r+b") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()


def open_study(storage: BaseStorage) -> optuna.Study:
    """The one study of `storage`, made if there is none."""
    return optuna.create_study(
        storage=storage, study_name=NAME, direction="maximize", load_if_exists=True
    )
