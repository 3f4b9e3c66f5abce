"""Two files of the same network, layer by layer on the same inputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base.anatomy import (
    Arrays,
    Port,
    Shapes,
    Trace,
    TracedLayer,
    drawn,
    value_range,
    with_shapes,
)
from pipeline.cli.inspect.report import FileReport, find_reader, foreign
from pipeline.compile.inside import layer_noise, power
from pipeline.core.errors import PipelineError

DRAWS = 8
"""Seeded inputs, where a user gives none."""
_SUFFIXES = re.compile(r"(_MatMul)?_quant$|_Q\d$|/WithoutBiases$|_bias_add$")
"""What quantizers append to the names of layers."""
_LEAST_BY_NAME, _LEAST_BY_ORDER = 0.5, 0.9
"""The share of the smaller file's layers that have to match: equal sizes alone say less."""


@dataclass(frozen=True)
class ComparedLayer:
    """A layer of a file beside that of the reference."""

    name: str
    snr_db: float | None
    """Signal to noise; None where both are equal."""
    relative_error: float
    """Root of noise over signal."""


@dataclass(frozen=True)
class ComparedOutput:
    """An output of a file beside that of the reference."""

    name: str
    snr_db: float | None
    largest: float
    """The largest error, relative to the largest absolute value of the reference."""
    same_argmax: int | None
    """Rows with the same largest value; None for an output that is no row of scores."""
    rows: int


@dataclass(frozen=True)
class Comparison:
    """What `--against` says."""

    file: Path
    reference: Path
    given: str
    matched: str
    layers: tuple[ComparedLayer, ...]
    """The noisiest first."""
    outputs: tuple[ComparedOutput, ...]

    def as_json(self) -> dict[str, Any]:
        """The comparison as JSON has it."""
        return asdict(self) | {"file": str(self.file), "reference": str(self.reference)}


def compare(
    ours: FileReport, theirs: FileReport, shapes: Shapes, given: Arrays | None = None
) -> Comparison:
    """Run two files on the same inputs and compare each layer's output.

    Args:
        ours: the file in question.
        theirs: the reference, in float as a rule.
        shapes: of inputs of `ours` whose sizes are not fixed.
        given: real inputs by name, their first axis the samples; None: seeded ones.

    Raises:
        PipelineError: where the inputs or layers of the two cannot be matched, or one cannot run.
    """
    pairs = _paired_inputs(ours, theirs)
    readers = [find_reader(report.file) for report in (ours, theirs)]
    traces: list[tuple[Trace, Trace]] = []
    for sample in _samples(theirs, pairs, shapes, given):
        feeds = {port.name: _converted(sample[its.name], its, port, ours) for port, its in pairs}
        with foreign(ours.file):
            mine = readers[0].trace(ours.file, feeds)
        with foreign(theirs.file):
            traces.append((mine, readers[1].trace(theirs.file, sample)))
    matched, how = _matched(traces[0][0].layers, traces[0][1].layers, ours, theirs)
    its_names = [traces[0][1].layers[j].name for _, j in matched]
    powers = np.zeros((len(matched), 2))
    for one, other in traces:
        for row, (i, j) in enumerate(matched):
            powers[row] += power(one.layers[i].values, other.layers[j].values)
    if not np.isfinite(powers).all():
        bad = its_names[int(np.argmin(np.isfinite(powers).all(axis=1)))]
        raise PipelineError(
            f"its layer {bad} or that of the reference has no finite output for these inputs",
            where=str(ours.file),
            fix="give real inputs with --inputs FILE.npz",
        )
    noise = layer_noise(its_names, powers)
    layers = [
        ComparedLayer(layer.name, layer.snr_db, float(np.sqrt(noise / max(signal, 1e-30))))
        for layer, (signal, noise) in zip(noise, powers.tolist(), strict=True)
    ]
    layers.sort(key=lambda layer: -layer.relative_error)
    source = f"{len(traces)} inputs " + ("of the user" if given else "drawn with seed 0")
    return Comparison(ours.file, theirs.file, source, how, tuple(layers), tuple(_outputs(traces)))


def _paired_inputs(ours: FileReport, theirs: FileReport) -> list[tuple[Port, Port]]:
    """The inputs of both files: by name where all names agree, else in order."""
    mine, its = ours.anatomy.inputs, theirs.anatomy.inputs
    if len(mine) != len(its):
        what = f"it has {len(mine)} inputs, {theirs.file.name} has {len(its)}"
        raise PipelineError(what, where=str(ours.file), fix="compare files of one network")
    by_name = {port.name: port for port in its}
    if by_name.keys() == {port.name for port in mine}:
        return [(port, by_name[port.name]) for port in mine]
    return list(zip(mine, its, strict=True))


def _samples(
    theirs: FileReport, pairs: Sequence[tuple[Port, Port]], shapes: Shapes, given: Arrays | None
) -> Iterator[Arrays]:
    """Inputs of the reference, one sample after the other."""
    ports = [its for _, its in pairs]
    wanted = {
        its.name: shapes[mine.name]
        for mine, its in pairs
        if mine.name in shapes and len(its.shape or ()) == len(shapes[mine.name])
    }
    known = with_shapes(ports, wanted, theirs.file)
    if given is not None:
        yield from _given(ports, given, theirs)
        return
    if left := [port.name for port in ports if port.name not in known]:
        raise PipelineError(
            f"the size of {', '.join(left)} is not fixed", where=str(theirs.file),
            fix=f"give it with --shape {left[0]}=1x..., or inputs with --inputs FILE.npz",
        )  # fmt: skip
    # A file that quantizes its input says which values it is made for.
    ranged = [its if value_range(its) != (0, 0) else _with_range(its, mine) for mine, its in pairs]
    for seed in range(DRAWS):
        yield drawn(ranged, known, seed)


def _with_range(port: Port, other: Port) -> Port:
    if value_range(other) == (0, 0) or not port.dtype.startswith("float"):
        return port
    return Port(port.name, port.dtype, port.shape, port.layout, other.quantized, other.scales,
                other.zero_points)  # fmt: skip


def _given(ports: Sequence[Port], given: Arrays, theirs: FileReport) -> Iterator[Arrays]:
    missing = [port.name for port in ports if port.name not in given]
    counts = {
        len(given[port.name]) for port in ports if port.name in given and given[port.name].ndim
    }
    if missing or len(counts) != 1 or 0 in counts:
        what = f"no array for {', '.join(missing)}" if missing else "its arrays differ in length"
        raise PipelineError(
            what, where="--inputs",
            fix=f"name arrays after the inputs of {theirs.file.name}, with samples first",
        )  # fmt: skip
    for i in range(counts.pop()):
        yield {
            port.name: np.ascontiguousarray(
                _rounded(given[port.name][i : i + 1], port)
                if given[port.name].dtype.kind == "f"
                else given[port.name][i : i + 1].astype(port.dtype)
            )
            for port in ports
        }


def _converted(values: NDArray[Any], its: Port, mine: Port, ours: FileReport) -> NDArray[Any]:
    """An input of the reference as the other file takes it: its layout, type and scale."""
    shape = mine.shape
    if shape is not None and len(shape) == values.ndim == 4 and not _fits(values.shape, shape):
        for order in ((0, 3, 1, 2), (0, 2, 3, 1)):
            if _fits(tuple(values.shape[axis] for axis in order), shape):
                values = values.transpose(order)
                break
    if shape is None or not _fits(values.shape, shape):
        raise PipelineError(
            f"its input {mine.name} is {shape}, that of the reference {its.name} {values.shape}",
            where=str(ours.file),
            fix="compare files of one network",
        )
    real = values
    if its.quantized == its.dtype:
        real = (values.astype(np.float32) - its.zero_points[0]) * np.float32(its.scales[0])
    elif values.dtype.kind in "iub" and mine.dtype.startswith("float"):
        raise PipelineError(
            f"its input {mine.name} is {mine.dtype}, that of the reference {its.dtype} without a "
            "scale: which numbers stand for the same is not known",
            where=str(ours.file),
            fix="compare files whose inputs mean the same",
        )
    if real.dtype.kind == "f" and not mine.dtype.startswith("float") and mine.quantized is None:
        raise PipelineError(
            f"its input {mine.name} is {mine.dtype} without a scale, that of the reference "
            f"{its.dtype}: which numbers stand for the same is not known",
            where=str(ours.file),
            fix="compare files whose inputs mean the same",
        )
    return np.ascontiguousarray(_rounded(real, mine))


def _rounded(real: NDArray[Any], port: Port) -> NDArray[Any]:
    """Real values in the type of an input."""
    if port.quantized != port.dtype or real.dtype.kind != "f":
        return real.astype(port.dtype)
    limits = np.iinfo(port.dtype)
    steps = np.rint(real / np.float32(port.scales[0])) + port.zero_points[0]
    rounded: NDArray[Any] = np.clip(steps, limits.min, limits.max).astype(port.dtype)
    return rounded


def _fits(shape: Sequence[int], asked: Sequence[int | str]) -> bool:
    return len(shape) == len(asked) and all(
        isinstance(b, str) or a == b for a, b in zip(shape, asked, strict=True)
    )


def _matched(
    mine: Sequence[TracedLayer], its: Sequence[TracedLayer], ours: FileReport, theirs: FileReport
) -> tuple[list[tuple[int, int]], str]:
    """Places of the same layers in both, and how they were found: by name, else by order."""
    sizes, its_sizes = ([layer.values.size for layer in layers] for layers in (mine, its))
    names = {_SUFFIXES.sub("", layer.name): j for j, layer in enumerate(its)}
    pairs = [
        (i, names[name])
        for i, layer in enumerate(mine)
        if (name := _SUFFIXES.sub("", layer.name)) in names
    ]
    pairs = [(i, j) for i, j in pairs if sizes[i] == its_sizes[j]]
    fewer = min(len(mine), len(its))
    least = max(1.0, _LEAST_BY_NAME * fewer)
    how = "by name"
    if len(pairs) < least or len(names) < len(its):
        how = "by order and size"
        blocks = SequenceMatcher(None, sizes, its_sizes, autojunk=False).get_matching_blocks()
        pairs = [(b.a + k, b.b + k) for b in blocks for k in range(b.size)]
        least = max(1.0, _LEAST_BY_ORDER * fewer)
    if not mine or not its:
        raise PipelineError(
            "one of the files has no layer outside of branches and loops",
            where=str(ours.file),
            fix="compare files whose layers run in every call",
        )
    if len(pairs) < least:
        raise PipelineError(
            f"its layers cannot be matched with those of {theirs.file.name}: of {len(mine)} and "
            f"{len(its)} only {len(pairs)} have the same names or sizes in the same order",
            where=str(ours.file),
            fix="compare files of one network",
        )
    return pairs, f"{len(pairs)} of {len(mine)} matched {how} with {len(its)}, the worst first"


def _outputs(traces: Sequence[tuple[Trace, Trace]]) -> Iterator[ComparedOutput]:
    """The outputs of both files: by name, else in order."""
    first, second = (list(trace.outputs) for trace in traces[0])
    pairs = [(n, n) for n in second] if set(first) == set(second) else list(
        zip(first, second, strict=False)
    )  # fmt: skip
    for name, its_name in pairs:
        both = [(a.outputs[name], b.outputs[its_name]) for a, b in traces]
        if any(a.shape != b.shape or a.dtype.kind != "f" for a, b in both):
            continue
        mine, its = (np.concatenate([np.atleast_1d(pair[k]).reshape(1, -1) for pair in both])
                     for k in (0, 1))  # fmt: skip
        noise = layer_noise([its_name], np.array([power(mine, its)]))[0]
        largest = float(np.abs(mine - its).max(initial=0) / max(np.abs(its).max(initial=0), 1e-30))
        scores = both[0][0].ndim == 2 and both[0][0].shape[1] > 1
        a, b = (np.concatenate([pair[k] for pair in both]) if scores else mine for k in (0, 1))
        b = np.concatenate([pair[1] for pair in both]) if scores else its
        same = int((a.argmax(1) == b.argmax(1)).sum()) if scores else None
        yield ComparedOutput(its_name, noise.snr_db, largest, same, len(a))
