"""Metadata inside a .tflite, read back by walking its tables by hand and by LiteRT itself."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.schema_py_generated import (
    BufferT,
    BuiltinOperator,
    ModelT,
    OperatorCodeT,
    OperatorT,
    QuantizationParametersT,
    SubGraphT,
    TensorT,
    TensorType,
)
from ai_edge_litert.tools import flatbuffer_utils
from flatbuffers import number_types

from pipeline.backends.tflite.metadata import with_metadata

LABELS = ("cat", "dog, small", "Bär")


def model(quantized: bool, channels: int = 3) -> bytes:
    """A .tflite that casts its image [1, 1, 1, channels] from uint8 to float32."""
    codes = BuiltinOperator.CAST, BuiltinOperator.DEQUANTIZE
    code = OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = codes[quantized]
    image, logits = TensorT(), TensorT()
    for tensor, kind, name in ((image, TensorType.UINT8, "image"), (logits, 0, "logits")):
        tensor.shape, tensor.type, tensor.name, tensor.buffer = [1, 1, 1, channels], kind, name, 0
    if quantized:
        image.quantization = QuantizationParametersT()
        image.quantization.scale, image.quantization.zeroPoint = [1 / 64], [128]
    operator, graph, whole = OperatorT(), SubGraphT(), ModelT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0], [1]
    graph.tensors, graph.operators = [image, logits], [operator]
    graph.inputs, graph.outputs = [0], [1]
    constant = BufferT()
    constant.data = np.arange(7, dtype=np.uint8)
    whole.version, whole.operatorCodes, whole.subgraphs = 3, [code], [graph]
    whole.buffers = [BufferT(), constant]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(whole))


class Table:
    """A table of any FlatBuffer, its fields by number as in the schema."""

    def __init__(self, content: bytes, position: int) -> None:
        self._table = flatbuffers.table.Table(bytearray(content), position)
        self._content = content

    def _at(self, field: int) -> int:
        offset = self._table.Offset(4 + 2 * field)
        assert offset, f"the field {field} is missing"
        return int(offset + self._table.Pos)

    def text(self, field: int) -> str:
        return bytes(self._table.String(self._at(field))).decode()

    def byte(self, field: int) -> int:
        return int(self._table.Get(number_types.Uint8Flags, self._at(field)))

    def table(self, field: int) -> Table:
        return Table(self._content, self._table.Indirect(self._at(field)))

    def _vector(self, field: int) -> tuple[int, int]:
        offset = self._table.Offset(4 + 2 * field)
        return int(self._table.Vector(offset)), int(self._table.VectorLen(offset))

    def tables(self, field: int) -> list[Table]:
        start, length = self._vector(field)
        return [Table(self._content, self._table.Indirect(start + 4 * i)) for i in range(length)]

    def floats(self, field: int) -> list[float]:
        start, length = self._vector(field)
        return np.frombuffer(self._content, "<f4", length, start).tolist()

    def has(self, field: int) -> bool:
        return bool(self._table.Offset(4 + 2 * field))


def entry(content: bytes) -> bytes:
    """The buffer that the model's entry TFLITE_METADATA names."""
    read = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    (found,) = [one for one in read.metadata if one.name in ("TFLITE_METADATA", b"TFLITE_METADATA")]
    return bytes(read.buffers[found.buffer].data)


def metadata(content: bytes) -> Table:
    found = entry(content)
    assert found[4:8] == b"M001"
    return Table(found, int.from_bytes(found[:4], "little"))


def answer(content: bytes) -> Any:
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    shape = interpreter.get_input_details()[0]["shape"]
    interpreter.set_tensor(0, np.arange(shape[-1], dtype=np.uint8).reshape(shape) * 50)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.parametrize(("channels", "colour"), [(1, 2), (3, 1)])
def test_the_input_is_an_image_of_raw_pixels(channels: int, colour: int) -> None:
    content = with_metadata(model(False, channels), "tiny", "A test.", channels, LABELS)
    about = metadata(content)
    assert (about.text(0), about.text(1), about.text(7)) == ("tiny", "A test.", "1.0.0")
    (graph,) = about.tables(3)
    (image,) = graph.tables(2)
    assert image.text(0) == "image"
    assert image.table(3).byte(0) == 2  # ImageProperties
    assert image.table(3).table(1).byte(0) == colour
    stats = image.table(5)
    assert (stats.floats(0), stats.floats(1)) == ([255], [0])


@pytest.mark.parametrize(("quantized", "mean", "std"), [(False, 0, 1), (True, 128, 64)])
def test_tools_that_normalise_and_quantize_give_the_raw_pixel(
    quantized: bool, mean: float, std: float
) -> None:
    content = with_metadata(model(quantized), "tiny", "A test.", 3, LABELS)
    (unit,) = metadata(content).tables(3)[0].tables(2)[0].tables(4)
    assert unit.byte(0) == 1  # NormalizationOptions
    options = unit.table(1)
    assert (options.floats(0), options.floats(1)) == ([mean], [std])
    scale, zero_point = Interpreter(model_content=content).get_input_details()[0]["quantization"]
    pixels = np.arange(256)
    normalised = (pixels - mean) / std
    seen = normalised / scale + zero_point if quantized else normalised
    assert (seen == pixels).all()


def test_the_output_is_scores_named_by_the_labels_inside() -> None:
    content = with_metadata(model(False), "tiny", "A test.", 3, LABELS)
    (logits,) = metadata(content).tables(3)[0].tables(3)
    assert logits.text(0) == "logits"
    assert logits.table(3).byte(0) == 1  # FeatureProperties
    assert not logits.has(5)  # logits have no bounds
    (file,) = logits.tables(6)
    assert (file.text(0), file.byte(2)) == ("labels.txt", 2)  # TENSOR_AXIS_LABELS
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["labels.txt"] and archive.testzip() is None
        assert archive.read("labels.txt").decode().splitlines() == list(LABELS)
        assert archive.infolist()[0].compress_type == zipfile.ZIP_STORED


@pytest.mark.parametrize("quantized", [False, True])
def test_the_model_computes_what_it_did(quantized: bool) -> None:
    plain = model(quantized)
    content = with_metadata(plain, "tiny", "A test.", 3, LABELS)
    assert content[4:8] == b"TFL3"
    np.testing.assert_array_equal(answer(content), answer(plain))


def test_every_buffer_is_aligned_as_the_schema_wants() -> None:
    content = with_metadata(model(False), "tiny", "A test.", 3, LABELS)
    assert content.find(bytes(range(7))) % 16 == 0
    assert content.find(entry(content)) % 16 == 0


def test_the_same_model_gives_the_same_bytes() -> None:
    first, second = (with_metadata(model(True), "tiny", "A test.", 3, LABELS) for _ in range(2))
    assert first == second
