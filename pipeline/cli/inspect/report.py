"""The report about a model file, as data: whose figures are counted from its `Anatomy`."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backends.base.anatomy import (
    UNKNOWN,
    Anatomy,
    Arrays,
    FoundLayer,
    Reader,
    Shapes,
    is_int8,
    is_integer,
)
from pipeline.backends.base.registry import backend, backend_names
from pipeline.core.errors import PipelineError


@dataclass(frozen=True)
class FileReport:
    """What `inspect` says of one file."""

    file: Path
    anatomy: Anatomy

    @property
    def layers(self) -> tuple[FoundLayer, ...]:
        """Its convolutions, matrix products and recurrent layers."""
        return self.anatomy.layers

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one call, of the layers of which they are known."""
        return sum(layer.macs or 0 for layer in self.layers)

    @property
    def uncounted(self) -> int:
        """Layers whose multiply-accumulates are not known."""
        return sum(layer.macs is None for layer in self.layers)

    @property
    def by_layers(self) -> bool:
        """Whether shares are of layers, as multiply-accumulates of most are not known."""
        return not self.macs or 2 * self.uncounted > len(self.layers)

    def share(self, layers: Iterable[FoundLayer]) -> float:
        """The share of `layers` in all multiply-accumulates; see `by_layers`."""
        if not self.layers:
            return 0.0
        if self.by_layers:
            return len(list(layers)) / len(self.layers)
        return sum(layer.macs or 0 for layer in layers) / self.macs

    def shares(self, *, executed: bool) -> dict[str, float]:
        """The share of each precision, the largest first; as executed, or as written."""
        found: dict[str, list[FoundLayer]] = {}
        for layer in self.layers:
            name = (layer.executed or UNKNOWN) if executed else layer.written
            found.setdefault(name, []).append(layer)
        shares = {name: self.share(of) for name, of in found.items()}
        return dict(sorted(shares.items(), key=lambda entry: -entry[1]))

    @property
    def int8_written(self) -> float:
        """The share of int8 that the file states."""
        return self.share([layer for layer in self.layers if is_int8(layer.written)])

    @property
    def int8_executed(self) -> float | None:
        """The share of int8 that the runtime executes; None where it was not asked."""
        if self.anatomy.runtime is None:
            return None
        return self.share([layer for layer in self.layers if is_int8(layer.executed or "")])

    @property
    def weights(self) -> str | None:
        """`per channel`, `per tensor` or `per block`, or how many layers have which."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            if layer.scales is not None:
                counts[layer.scales] = counts.get(layer.scales, 0) + 1
        if len(counts) < 2:
            return next(iter(counts), None)
        return ", ".join(f"{kind} in {count} of them" for kind, count in counts.items())

    @property
    def in_float(self) -> tuple[FoundLayer, ...]:
        """Layers whose products are of floats, the largest first."""
        found = [layer for layer in self.layers if not is_integer(layer.precision)]
        found = [layer for layer in found if layer.precision != UNKNOWN]
        return tuple(sorted(found, key=lambda layer: -(layer.macs or 0)))

    @property
    def fallbacks(self) -> tuple[FoundLayer, ...]:
        """Layers that the file has in integers and the runtime computes in float."""
        return tuple(layer for layer in self.in_float if is_integer(layer.written))

    def as_json(self) -> dict[str, Any]:
        """The report as JSON has it."""
        anatomy = asdict(self.anatomy)
        layers = anatomy.pop("layers")
        return {
            "file": str(self.file),
            **anatomy,
            "macs": self.macs,
            "layers_without_macs": self.uncounted,
            "shares_of": "layers" if self.by_layers else "macs",
            "shares_written": self.shares(executed=False),
            "shares_executed": self.shares(executed=True) if self.anatomy.runtime else None,
            "int8_share_written": self.int8_written,
            "int8_share_executed": self.int8_executed,
            "weight_scales": self.weights,
            "in_float": [layer.name for layer in self.in_float],
            "layers": layers,
        }


def find_reader(file: Path) -> Reader:
    """The reader of the backend that reads files of this suffix.

    Raises:
        PipelineError: for no such file, a suffix that no backend reads, and a runtime that is not
            installed.
    """
    known = {suffix: name for name in backend_names() for suffix in backend(name).reads}
    its = known.get(file.suffix.lower())
    refused = file.is_dir() and not (its and backend(its).reads_folders)
    if refused or not file.exists():
        what = "is a folder" if refused else "there is no such file"
        raise PipelineError(what, where=str(file), fix=f"name a file: {', '.join(known)}")
    if file.suffix.lower() not in known:
        what = f"files with the suffix `{file.suffix}` cannot be inspected"
        raise PipelineError(
            f"{what}; known are {', '.join(sorted(known))}",
            where=str(file),
            fix="convert it to one of these",
        )
    spec = backend(known[file.suffix.lower()])
    try:
        return spec.reader()
    except ImportError as error:
        raise PipelineError(
            f"{spec.title} reads such files, and cannot be imported: {error}",
            where=str(file),
            fix="`python -m pipeline doctor` prints the command that installs it",
        ) from error


def report_on(file: Path, shapes: Shapes) -> FileReport:
    """Inspect one file.

    Args:
        file: of any format that a backend reads.
        shapes: of inputs whose sizes are not fixed.
    """
    reader = find_reader(file)
    with foreign(file):
        return FileReport(file, reader.read(file, shapes))


@contextmanager
def foreign(file: Path) -> Iterator[None]:
    """Encloses what reads a file of anybody: a damaged one makes libraries raise anything.

    What a reader itself understands is a `PipelineError` that says more. What libraries print does
    not get into the report.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (PipelineError, OSError, MemoryError):
        raise
    except Exception as error:
        raise PipelineError(
            f"is damaged, or has what this version does not know: {type(error).__name__}: {error}",
            where=str(file),
            fix="if its runtime opens it, report it together with the file",
        ) from error


def parse_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The shapes that `--shape NAME=1x3x224x224` gives, by name of the input."""
    found = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        parts = sizes.split("x")
        if not name or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise PipelineError(
                f"`{text}` is no shape", where="--shape", fix="write NAME=1x3x224x224"
            )
        found[name] = tuple(map(int, parts))
    return found


def read_inputs(file: Path) -> Arrays:
    """The arrays of an .npz by name of the input, their first axis the samples.

    Raises:
        PipelineError: for a file that is missing or has pickled objects.
    """
    try:
        with np.load(file, allow_pickle=False) as content:
            if not isinstance(content, np.lib.npyio.NpzFile):
                raise ValueError("one array without a name")
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise PipelineError(
            f"is no .npz of inputs: {error}", where=str(file),
            fix="write it with numpy.savez(FILE, input_name=array)",
        ) from error  # fmt: skip
