"""The report of `inspect` as a short text."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.backends.base.anatomy import DYNAMIC, FoundLayer, Port, is_integer
from pipeline.cli.inspect.against import Comparison
from pipeline.cli.inspect.report import FileReport
from pipeline.core.text import printable, shorten

_LISTED = 10
"""Layers that a list shows; `--json` has all."""


def lines(report: FileReport) -> Iterator[str]:
    """The text about one file."""
    anatomy = report.anatomy
    yield printable(f"{report.file.name}: {anatomy.format}")
    for kind, ports in (("input", anatomy.inputs), ("output", anatomy.outputs)):
        for port in ports:
            yield f"  {kind:7} {_port(port)}"
    yield (
        f"  size    {anatomy.size_bytes:,} bytes, {anatomy.parameters:,} parameters, "
        f"{_macs(report)}"
    )
    yield f"  int8    {_verdict(report)}"
    if report.layers:
        yield from _precisions(report)
    if anatomy.why_not_run:
        yield f"  not run {shorten(anatomy.why_not_run, 160)}"
    if report.weights:
        yield f"  weights quantized {report.weights}"
    yield from _in_float(report)
    if anatomy.cut:
        yield f"  graph   {anatomy.cut}"
    listed = [f"{count} {printable(kind)}" for kind, count in anatomy.operators.items()]
    yield f"  nodes   {', '.join(listed[: _LISTED * 2])}{_more(len(listed), _LISTED * 2)}"
    for note in anatomy.notes:
        yield f"  note    {printable(note)}"


def _port(port: Port) -> str:
    sizes = "of any rank" if port.shape is None else f"[{', '.join(map(str, port.shape))}]"
    text = f"{shorten(port.name) or '(no name)'}: {port.dtype} {sizes}"
    if port.layout:
        text += f", {port.layout}"
    if port.scales:
        zero, scale = port.zero_points[0], port.scales[0]
        kind = "" if port.quantized == port.dtype else f"; becomes {port.quantized} at once:"
        text += f"{kind or ','} real = {scale:.6g} x ({port.quantized} - {zero})"
    return printable(text)


def _macs(report: FileReport) -> str:
    layers = f"{len(report.layers)} layers"
    if not report.layers:
        return "no conv or linear layer"
    if report.by_layers:
        return f"{layers}, of which the MACs of {report.uncounted} are not known"
    known = f"{report.macs:,} MACs in {layers}"
    return f"at least {known}, {report.uncounted} not counted" if report.uncounted else known


def _verdict(report: FileReport) -> str:
    """Which share is int8, and who says so."""
    anatomy, executed = report.anatomy, report.int8_executed
    of = "layers" if report.by_layers else "MACs"
    if not report.layers:
        return "there is nothing to count"
    if executed is None:
        return f"{report.int8_written:.1%} of {of} as the file says; not measured"
    text = f"{executed:.1%} of {of}, as {anatomy.runtime} executes it here"
    if abs(executed - report.int8_written) > 5e-4:
        text += f"; the file says {report.int8_written:.1%}"
    return text


def _precisions(report: FileReport) -> Iterator[str]:
    measured = report.anatomy.runtime is not None
    written, executed = (report.shares(executed=flag) for flag in (False, True))
    shown = executed if measured else written
    parts = [f"{share:.1%} {name}" for name, share in shown.items()]
    yield f"  by      {'; '.join(parts)}"
    if measured and written != executed:
        parts = [f"{share:.1%} {name}" for name, share in written.items()]
        yield f"  written {'; '.join(parts)}"
    if any(name.startswith(DYNAMIC) for name in shown):
        yield f"          {DYNAMIC}: activations are float and quantized anew in each call"


def _in_float(report: FileReport) -> Iterator[str]:
    """Float layers of a file that has others, and those that fall back."""
    floats = report.in_float
    if not floats:
        return
    if len(floats) == len(report.layers) and not report.fallbacks:
        yield "  float   all of them"
        return
    yield f"  float   {len(floats)} of {len(report.layers)} layers:"
    for layer in floats[:_LISTED]:
        yield f"          {_layer(layer, report)}"
    if len(floats) > _LISTED:
        yield f"          and {len(floats) - _LISTED} smaller ones"


def _layer(layer: FoundLayer, report: FileReport) -> str:
    size = "MACs unknown" if layer.macs is None else f"{layer.macs:,} MACs"
    share = "" if not layer.macs else f", {report.share([layer]):.1%}"
    promise = f", written as {layer.written}" if is_integer(layer.written) else ""
    return f"{shorten(layer.name)} ({layer.op}, {size}{share}): {layer.precision}{promise}"


def _more(count: int, limit: int) -> str:
    return f" and {count - limit} more kinds" if count > limit else ""


def compared(comparison: Comparison) -> Iterator[str]:
    """The text about two files, the noisiest layers first."""
    ours, theirs = comparison.file.name, comparison.reference.name
    yield printable(f"{ours} against {theirs}: {comparison.given}")
    yield f"  layers  {comparison.matched}"
    width = max((len(shorten(layer.name)) for layer in comparison.layers), default=0)
    for layer in comparison.layers[: 3 * _LISTED]:
        noise = "no difference" if layer.snr_db is None else f"{layer.snr_db:7.2f} dB"
        yield f"          {shorten(layer.name):{width}}  {noise}  error {layer.relative_error:.2e}"
    if len(comparison.layers) > 3 * _LISTED:
        yield f"          and {len(comparison.layers) - 3 * _LISTED} better ones"
    for output in comparison.outputs:
        noise = "no difference" if output.snr_db is None else f"{output.snr_db:.2f} dB"
        text = f"  output  {shorten(output.name)}: {noise}, largest error {output.largest:.2e}"
        if output.same_argmax is not None:
            text += f", same argmax in {output.same_argmax} of {output.rows}"
        yield text
