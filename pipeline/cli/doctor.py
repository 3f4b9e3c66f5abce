"""What this machine can compile, run and measure, and how to install what is missing."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.backends.base.registry import backend, backend_names
from pipeline.core.errors import PipelineError
from pipeline.latency.fingerprint import read_fingerprint

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@dataclass(frozen=True)
class Diagnosis:
    """What this machine can do with one backend."""

    backend: str
    installed: dict[str, str]
    """Version by package."""
    install: str | None
    """The command that installs the missing packages."""
    runs_with: str | None
    """The runtime that evaluates its artifacts."""
    no_compile: str | None
    """Why it cannot compile here; None where it can."""
    no_run: str | None
    """Why it cannot run here; None where it can."""
    no_measure: str | None
    """Why latencies cannot be measured here; None where they can."""


def diagnose(name: str) -> Diagnosis:
    """What is installed of the backend `name`."""
    its = backend(name)
    used, unmeasurable = its.evaluator(), its.unmeasurable()
    installed, missing = {}, []
    for package in its.packages:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    absent = f"not installed: {', '.join(missing)}" if missing else None
    unusable: str | None = unmeasurable or absent or "its runtime is not installed"
    if used:  # without its hardware, another runtime may evaluate the accuracy
        unusable = f"only {used}" if unmeasurable else None
    return Diagnosis(
        backend=name,
        installed=installed,
        install=install_command(missing) if missing else None,
        runs_with=used,
        no_compile=absent or (unusable if used is None else None),
        no_run=unusable,
        no_measure=unmeasurable,
    )


def install_command(packages: list[str]) -> str:
    """The `pip install` of `packages` at the versions that pyproject.toml pins.

    It pins none for a backend of another package; there pip chooses.
    """
    pins = _pins()
    return "pip install " + " ".join(f"'{pins.get(package, package)}'" for package in packages)


def examine() -> Iterator[RenderableType]:
    """A table of all runtimes, then the machine, for the terminal."""
    found = [diagnose(name) for name in backend_names()]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    for heading in ("Runtime", "Installed", "Compile", "Run", "Measure"):
        table.add_column(heading, no_wrap=heading in ("Runtime", "Installed"))
    for one in found:
        versions = "\n".join(f"{name} {version}" for name, version in one.installed.items())
        table.add_row(
            Text(one.backend),
            Text(versions or "nothing"),
            _answer(one.no_compile),
            _answer(one.no_run, one.runs_with or ""),
            _answer(one.no_measure),
        )
    yield table
    for one in found:
        if one.install:
            yield Text(f"{one.backend}: {one.install}")
    machine = read_fingerprint()
    yield Text(
        f"Machine: {machine.cpu}, {machine.architecture}, {machine.cores} core(s), "
        f"{machine.memory_gib} GiB"
    )
    yield Text(f"Instruction sets: {', '.join(machine.instruction_sets) or 'none that matter'}")
    yield Text(f"Accelerators: {'; '.join(machine.accelerators) or 'none found'}")


def _answer(why_not: str | None, how: str = "") -> Text:
    if why_not is not None:
        return Text(f"no: {why_not}", style="yellow")
    return Text(f"yes: {how}" if how else "yes", style="green")


def _pins() -> dict[str, str]:
    """The requirements of the project and its extras, by package."""
    try:
        project = tomllib.loads(PROJECT.read_text())["project"]
    except FileNotFoundError:
        raise PipelineError(
            "there is no such file", where=str(PROJECT), fix="run from a clone of the project"
        ) from None
    groups = (project["dependencies"], *project.get("optional-dependencies", {}).values())
    pins = [pin for group in groups for pin in group]
    return {re.split(r"[\[=<>!~; ]", pin, maxsplit=1)[0]: pin for pin in pins}
