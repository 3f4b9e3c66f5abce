"""The backends by name, found by the entry points `edgestill.backends` of installed packages."""

from __future__ import annotations

from pipeline.backends.base.spec import Backend
from pipeline.core import plugins

KIND = "backends"


def backend_names() -> tuple[str, ...]:
    """Every registered backend, installed or not."""
    return plugins.names(KIND)


def backend(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        PipelineError: for an unknown name, with the nearest known one.
    """
    found: Backend = plugins.find(KIND, name, its=Backend)
    return found


def title(name: str) -> str:
    """The name of a backend for people; of one that is no longer registered, its own."""
    return backend(name).title if name in backend_names() else name
