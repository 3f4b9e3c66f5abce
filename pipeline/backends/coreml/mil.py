"""Reads a .mlpackage of Core ML: the operators and constants of its ML program. Runs nothing.

Used in the lab and, by graph.py, in bundles. Needs NumPy, and coremltools for the definitions of
the messages: <https://apple.github.io/coremltools/mlmodel/Format/MIL.html>. Constants are read
here, not by coremltools, so that what a file has is found out without the code that wrote it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Union

import numpy as np

DTYPES = {
    1: "bool", 2: "str", 10: "float16", 11: "float32", 12: "float64", 21: "int8", 22: "int16",
    23: "int32", 24: "int64", 25: "int4", 31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64",
    35: "uint4", 36: "uint2", 37: "uint1", 38: "uint6", 39: "uint3",
}  # fmt: skip
"""NumPy's names of MIL's `DataType`, or names in its style."""

_DATA = ("quantized_data", "data", "indices", "nonzero_data", "source_val")
"""Operands of `constexpr_` operators that hold weights."""

_SENTINEL = 0xDEADBEEF
"""In front of the record of each constant in weight.bin."""

Given = Union[str, "np.ndarray[Any, Any]"]
"""An operand: the name of an output of another operator or of an input, or its value."""


class Type(NamedTuple):
    """Of a value: `dtype` by `DTYPES`; a size that is not fixed is -1."""

    dtype: str
    shape: tuple[int, ...]


class Op(NamedTuple):
    """An operator of the program."""

    kind: str
    inputs: dict[str, list[Given]]
    outputs: tuple[str, ...]


class Program:
    """The function `main` of a package.

    Args:
        folder: of the package.

    Raises:
        ValueError: for a folder that is no package or holds another kind of model.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.spec = self._read()
        kind = self.spec.WhichOneof("Type")
        if kind != "mlProgram":
            raise ValueError(f"it holds a `{kind}`, no ML program")
        function = self.spec.mlProgram.functions["main"]
        self.opset = function.opset
        block = function.block_specializations[function.opset]
        self.types = {one.name: _type(one.type) for one in function.inputs}
        self.inputs = tuple(one.name for one in function.inputs)
        self.outputs = tuple(block.outputs)
        self._constants: dict[str, Any] = {}
        self._read_values: dict[str, np.ndarray[Any, Any]] = {}
        self.ops: tuple[Op, ...] = tuple(self._operators(block.operations))
        self.makers = {name: op for op in self.ops for name in op.outputs}
        self.readers: dict[str, list[Op]] = {}
        for op in self.ops:
            named = [one for given in op.inputs.values() for one in given if isinstance(one, str)]
            for name in dict.fromkeys(named):
                self.readers.setdefault(name, []).append(op)

    def _read(self) -> Any:
        with quiet():
            from coremltools.proto import Model_pb2
        try:
            manifest = json.loads((self.folder / "Manifest.json").read_text(encoding="utf-8"))
            item = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
            self._model = self.folder / "Data" / item["path"]
            content = self._model.read_bytes()
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"it is damaged or no .mlpackage: {error}") from None
        spec = Model_pb2.Model()
        try:
            spec.ParseFromString(content)
        except Exception as error:  # of protobuf, whose class depends on its version
            raise ValueError(f"{self._model.name} is damaged: {error}") from None
        return spec

    def _operators(self, operations: Any) -> Iterator[Op]:
        """All operators but constants, which are kept unread."""
        for operation in operations:
            outputs = tuple(one.name for one in operation.outputs)
            self.types.update({one.name: _type(one.type) for one in operation.outputs})
            if operation.type == "const":
                self._constants[outputs[0]] = operation.attributes["val"]
                continue
            given = {
                name: [self._given(one) for one in argument.arguments]
                for name, argument in operation.inputs.items()
            }
            # constexpr_affine_dequantize of iOS 16 keeps its operands as attributes
            given.update(
                (name, [self._value(value)])
                for name, value in operation.attributes.items()
                if operation.type.startswith("constexpr_") and name != "name"
            )
            yield Op(operation.type, given, outputs)

    def _given(self, binding: Any) -> Given:
        if binding.WhichOneof("binding") == "name":
            return str(binding.name)
        return self._value(binding.value)

    def is_constant(self, operand: Given) -> bool:
        """Whether an operand is a value or the output of a `const`."""
        return not isinstance(operand, str) or operand in self._constants

    def value(self, operand: Given) -> np.ndarray[Any, Any]:
        """The value of a constant operand, as an array of its type and shape."""
        if not isinstance(operand, str):
            return operand
        if operand not in self._read_values:
            self._read_values[operand] = self._value(self._constants[operand])
        return self._read_values[operand]

    def type_of(self, operand: Given) -> Type:
        """Of an operand; constants need not be read for it."""
        if isinstance(operand, str):
            return self.types[operand]
        return Type(str(operand.dtype), operand.shape)

    def parameters(self) -> int:
        """Elements of constants of two axes or more: biases cannot be told from settings."""
        types = [self.types[name] for name in self._constants]
        for op in self.ops:
            data = [op.inputs[name][0] for name in _DATA if name in op.inputs]
            if op.kind.startswith("constexpr_"):
                types += [self.type_of(one) for one in data if not isinstance(one, str)]
        return sum(int(np.prod(shape)) for _, shape in types if len(shape) > 1)

    def _value(self, value: Any) -> np.ndarray[Any, Any]:
        dtype, shape = _type(value.type)
        if value.WhichOneof("value") == "blobFileValue":
            return self._blob(value.blobFileValue, dtype, shape)
        tensor = value.immediateValue.tensor
        field = tensor.WhichOneof("value")
        if field is None:  # protobuf leaves out an empty one
            return np.zeros(shape, dtype)
        found = getattr(tensor, field).values
        if field == "bytes":
            return np.frombuffer(found, dtype).reshape(shape)
        return np.array(list(found), dtype).reshape(shape)

    def _blob(self, at: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """From weight.bin: at the offset is a record of the place and size of the content."""
        file = self._model.parent / at.fileName.replace("@model_path/", "")
        try:
            size = np.dtype(dtype).itemsize * int(np.prod(shape))
            record = np.fromfile(file, "<u4", 8, offset=at.offset)
            length, place = (int(one) for one in record[2:6].view("<u8"))
            if record[0] != _SENTINEL or length != size:
                raise ValueError("no record of such a constant")
            return np.fromfile(file, dtype, int(np.prod(shape)), offset=place).reshape(shape)
        except (OSError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{file.name} at {at.offset}: {dtype} {shape}: {error}") from None


def _type(value: Any) -> Type:
    tensor = value.tensorType
    sizes = (one.constant.size if one.HasField("constant") else -1 for one in tensor.dimensions)
    return Type(DTYPES.get(tensor.dataType, f"type {tensor.dataType}"), tuple(sizes))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what importing coremltools says of other packages; errors pass."""
    loggers = [
        logging.getLogger(name) for name in ("coremltools", "torchao", "torch.utils._pytree")
    ]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels):
            one.setLevel(level)
