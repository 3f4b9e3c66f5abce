"""Metadata and labels inside a .tflite, where LiteRT's tools and libraries look for them.

The entry TFLITE_METADATA of the model holds a FlatBuffer of its own, and labels.txt follows the
model as a zip archive. Tables, fields and enumerations are those of metadata_schema.fbs in
github.com/tensorflow/tflite-support; none of them is newer than the schema's version 1.0.0.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

ENTRY = "TFLITE_METADATA"
IDENTIFIER = b"M001"
MIN_PARSER_VERSION = "1.0.0"
LABELS = "labels.txt"
FEATURE_PROPERTIES, IMAGE_PROPERTIES = 1, 2
NORMALIZATION_OPTIONS = 1
RGB, GRAYSCALE = 1, 2
TENSOR_AXIS_LABELS = 2
ALIGNMENT = 16
"""Of every buffer's data, in bytes: `force_align` in LiteRT's own schema."""


def with_metadata(
    content: bytes, name: str, description: str, channels: int, labels: Sequence[str]
) -> bytes:
    """The .tflite `content` with metadata, and with its labels, one per line, behind it.

    Its input is an image of raw pixels, uint8 with 1 (grey) or 3 (RGB) channels, its output one
    logit per label. The same arguments give the same bytes.
    """
    from ai_edge_litert.schema_py_generated import MetadataT
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    quantization = graph.tensors[graph.inputs[0]].quantization
    quantized = quantization is not None and quantization.scale is not None
    # Tools normalise by mean and std, then quantize by the tensor's scale and zero point. The
    # result has to be the raw pixel.
    mean = float(quantization.zeroPoint[0]) if quantized else 0.0
    std = 1 / float(quantization.scale[0]) if quantized else 1.0
    entry = MetadataT()
    entry.name, entry.buffer = ENTRY, len(model.buffers)
    model.metadata = [*(model.metadata or []), entry]
    about = _metadata(name, description, channels, mean, std)
    data = [buffer.data for buffer in model.buffers] + [np.frombuffer(about, np.uint8)]
    model.buffers = [_Buffer(one) for one in data]
    file = io.BytesIO()
    file.write(flatbuffer_utils.convert_object_to_bytearray(model))
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        member = zipfile.ZipInfo(LABELS, date_time=(1980, 1, 1, 0, 0, 0))
        member.create_system = 3  # else the machine's own
        archive.writestr(member, "".join(f"{label}\n" for label in labels).encode())
    return file.getvalue()


class _Buffer:
    """A buffer whose data is aligned to 16 bytes; the generated class aligns it to 4."""

    def __init__(self, data: Any) -> None:
        self.data = None if data is None else np.frombuffer(bytes(data), np.uint8)

    def Pack(self, builder: Any) -> int:  # noqa: N802 - named as in the generated classes
        if self.data is None:
            return _table(builder, {})
        builder.StartVector(1, len(self.data), ALIGNMENT)
        builder.head -= len(self.data)
        builder.Bytes[builder.head : builder.head + len(self.data)] = self.data.tobytes()
        return _table(builder, {0: int(builder.EndVector())})


def _metadata(name: str, description: str, channels: int, mean: float, std: float) -> bytes:
    """A ModelMetadata of one image in and one score per label out."""
    import flatbuffers

    b = flatbuffers.Builder(1024)
    colour = GRAYSCALE if channels == 1 else RGB
    image = _tensor(
        b,
        "image",
        "Raw pixels, 0 to 255, NHWC; normalisation is inside the model.",
        _content(b, IMAGE_PROPERTIES, _table(b, {}, {0: colour})),
        {4: _vector(b, [_normalisation(b, mean, std)]), 5: _stats(b, 0.0, 255.0)},
    )
    labels = {0: b.CreateString(LABELS), 1: b.CreateString("The class of each logit, in order.")}
    logits = _tensor(
        b,
        "logits",
        "One logit per class; softmax gives probabilities.",
        _content(b, FEATURE_PROPERTIES, _table(b, {})),
        {6: _vector(b, [_table(b, labels, {2: TENSOR_AXIS_LABELS})])},
    )
    graph = _table(b, {2: _vector(b, [image]), 3: _vector(b, [logits])})
    texts = {0: name, 1: description, 7: MIN_PARSER_VERSION}
    fields = {slot: b.CreateString(text) for slot, text in texts.items()}
    b.Finish(_table(b, {**fields, 3: _vector(b, [graph])}), file_identifier=IDENTIFIER)
    return bytes(b.Output())


def _tensor(b: Any, name: str, description: str, content: int, more: dict[int, int]) -> int:
    """A TensorMetadata; `more` are its process units (4), stats (5) and associated files (6)."""
    names = {0: b.CreateString(name), 1: b.CreateString(description)}
    return _table(b, {**names, 3: content, **more})


def _content(b: Any, kind: int, properties: int) -> int:
    return _table(b, {1: properties}, {0: kind})


def _normalisation(b: Any, mean: float, std: float) -> int:
    """A ProcessUnit of NormalizationOptions."""
    options = _table(b, {0: _floats(b, mean), 1: _floats(b, std)})
    return _table(b, {1: options}, {0: NORMALIZATION_OPTIONS})


def _stats(b: Any, least: float, largest: float) -> int:
    return _table(b, {0: _floats(b, largest), 1: _floats(b, least)})


def _floats(b: Any, value: float) -> int:
    return int(b.CreateNumpyVector(np.array([value], np.float32)))


def _vector(b: Any, tables: Sequence[int]) -> int:
    b.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        b.PrependUOffsetTRelative(table)
    return int(b.EndVector())


def _table(b: Any, offsets: dict[int, int], numbers: dict[int, int] | None = None) -> int:
    """A table with `offsets` and unsigned bytes by field, counted from 0 in the schema."""
    numbers = numbers or {}
    b.StartObject(max([*offsets, *numbers], default=-1) + 1)
    for field, offset in offsets.items():
        b.PrependUOffsetTRelativeSlot(field, offset, 0)
    for field, number in numbers.items():
        b.PrependUint8Slot(field, number, 0)
    return int(b.EndObject())
