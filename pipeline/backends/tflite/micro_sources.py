"""The folder micro/ of a bundle: an int8 model as C++ sources for TFLite Micro."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.tflite import micro
from pipeline.core.files import write_whole

SOURCES = Path(__file__).parent / "microcontroller"
FOLDER = "micro"

_ODD_NAMES = {
    "BATCH_MATMUL": "BatchMatMul",
    "CUMSUM": "CumSum",
    "PADV2": "PadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
}
_PER_LINE = 24


def write(artifact: ArtifactRecord, folder: Path) -> None:
    """Write micro/ into a bundle's `folder`, which has the model and golden.npz."""
    assert artifact.micro
    target = folder / FOLDER
    shutil.copytree(SOURCES, target)
    content = (folder / artifact.model_file).read_bytes()
    image = np.load(folder / "golden.npz")["images"][:1]
    logits, _ = micro.run(content, image, where=str(folder / artifact.model_file))
    write_whole(target / "model.h", _header(artifact, artifact.micro.arena_bytes))
    write_whole(target / "model.cc", _model(content, artifact, image.tobytes(), logits[0].tolist()))
    write_whole(target / "operators.h", operators_header(list(artifact.micro.operators)))


def method(operator: str) -> str:
    """The method of MicroMutableOpResolver that adds an operator of LiteRT's name."""
    parts = [part.capitalize() if part[0].isalpha() else part for part in operator.split("_")]
    return "Add" + _ODD_NAMES.get(operator, "".join(parts))


def operators_header(operators: list[str]) -> str:
    """operators.h: a resolver of these operators and no others."""
    lines = "\n".join(f"  TF_LITE_ENSURE_STATUS(operators.{method(one)}());" for one in operators)
    return f"""// The operators of model.cc: no kernel of another one is linked.
#pragma once

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

using Operators = tflite::MicroMutableOpResolver<{len(operators)}>;

inline TfLiteStatus AddOperators(Operators& operators) {{
{lines}
  return kTfLiteOk;
}}
"""


def _header(artifact: ArtifactRecord, arena: int) -> str:
    size, resize, channels = artifact.image_size, artifact.stored_size, artifact.channels
    return f"""// {artifact.student}, {artifact.precision}: what model.cc holds.
#pragma once

#include <cstddef>
#include <cstdint>

constexpr int kSize = {size};  // height and width of the input in pixels
constexpr int kResize = {resize};  // of the shorter side of an image, before that is cut out
constexpr int kChannels = {channels};  // 1: grey, 3: RGB
constexpr int kClasses = {len(artifact.classes)};
constexpr size_t kArenaBytes = {arena};  // on a 64-bit machine, without optimized kernels

extern const unsigned char kModel[];  // model.tflite, at an address that 16 divides
extern const char* const kLabels[kClasses];
extern const uint8_t kGoldenImage[kSize * kSize * kChannels];  // the first one of golden.npz
extern const float kGoldenLogits[kClasses];  // what TFLite Micro gave for it in the lab
"""


def _model(content: bytes, artifact: ArtifactRecord, image: bytes, logits: list[float]) -> str:
    labels = "\n".join(f"    {_literal(label)}," for label in artifact.classes)
    values = ", ".join(f"{value!r}f" for value in logits)
    return f"""#include "model.h"

alignas(16) const unsigned char kModel[] = {{
{_bytes(content)}
}};

const char* const kLabels[kClasses] = {{
{labels}
}};

const uint8_t kGoldenImage[kSize * kSize * kChannels] = {{
{_bytes(image)}
}};

const float kGoldenLogits[kClasses] = {{{values}}};
"""


def _bytes(content: bytes) -> str:
    parts = (content[i : i + _PER_LINE] for i in range(0, len(content), _PER_LINE))
    return "\n".join(",".join(map(str, part)) + "," for part in parts)


def _literal(text: str) -> str:
    """A C string of UTF-8; octal escapes end after three digits, whatever follows."""
    plain = set(range(32, 127)) - set(b'"\\?')
    escaped = (chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(escaped)}"'
