"""Opens .onnx files of anybody, with the files of weights beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import _get_all_tensors, load_external_data_for_model

from pipeline.backends.onnxruntime import graph as graphs
from pipeline.core.errors import PipelineError

_LARGEST = 2_000_000_000
"""Bytes of weights; protobuf writes at most 2^31 - 1 in all."""


@dataclass(frozen=True)
class Loaded:
    """A model with its local functions inlined."""

    model: onnx.ModelProto
    apart: tuple[Path, ...]
    """Files of weights that it names beside itself."""
    unread: str | None
    """Why the weights in them were not read."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of those that are there."""
        return sum(file.stat().st_size for file in self.apart if file.is_file())


def load(file: Path) -> Loaded:
    """Open an .onnx file.

    Raises:
        PipelineError: for another file, or a damaged one.
    """
    try:
        model = onnx.load(file, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise PipelineError("is damaged or no ONNX file", where=str(file)) from error
    if not model.graph.node and not model.graph.output:
        raise PipelineError("is damaged or no ONNX file: it has no graph", where=str(file))
    if not all(isinstance(text, str) for text in _texts(model)):  # protobuf gives bytes for others
        raise PipelineError("is damaged: its names are no text", where=str(file))
    apart = _apart(file, model)
    missing = ", ".join(one.name for one in apart if not one.is_file())
    unread = f"its weights are not there: {missing}" if missing else None
    if not missing and sum(one.stat().st_size for one in apart) > _LARGEST:
        unread = "its weights have more than 2 GB, the most that a model in memory can have"
    if apart and unread is None:
        try:
            load_external_data_for_model(model, str(file.parent))
        except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
            unread = f"its weights cannot be read: {str(error).splitlines()[0]}"
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    return Loaded(model, apart, unread)


def _apart(file: Path, model: onnx.ModelProto) -> tuple[Path, ...]:
    names = {
        entry.value
        for tensor in _get_all_tensors(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(file.parent / name for name in sorted(names))


def _texts(model: onnx.ModelProto) -> Iterator[str]:
    """The texts of a model that a report has."""
    yield from (model.producer_name, model.producer_version)
    yield from (entry.domain for entry in model.opset_import)
    for graph in (model.graph, *graphs.inner_graphs(model.graph)):
        yield from (tensor.name for tensor in graph.initializer)
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield value.name
            yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
        for node in graph.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            yield from (entry.name for entry in node.attribute)
