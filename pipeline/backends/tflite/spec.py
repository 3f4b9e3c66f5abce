"""LiteRT as the other rooms see it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from pipeline.backends.base.spec import FLOAT32, INT8, Backend, BackendSettings

_AFTER_USE = """
## On a phone

```sh
python phone.py --benchmark-model benchmark_model --units cpu,gpu,npu --json result.json
```

pushes the model to an Android phone by `adb`, where the phone's own SHA-256 of it differs, and
times it there with LiteRT's `benchmark_model`
(<https://developers.google.com/edge/litert/next/benchmark>). Operators that the GPU or NPU did not
take are not counted as theirs.

examples/ classifies an image with LiteRT in Kotlin (Classifier.kt), Swift (Classifier.swift) and
C++ (classifier.cc); your app needs model.tflite, labels.txt and preprocess.json. Each resizes with
Pillow 13's arithmetic and says what its platform's decoder may change. C++ and Kotlin gave Pillow's
pixels bit for bit; Swift has not been compiled yet. model.tflite has labels.txt and TFLite metadata
inside, too.
"""


class Settings(BackendSettings):
    """`backends.tflite` of params.yaml: what is compiled for LiteRT."""

    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = Field(min_length=1)
    hard_swish: Literal["decomposed", "keep"] = Field(
        "decomposed", description="how int8 computes hard-swish, for which XNNPACK has no kernel"
    )


class TFLite(Backend):
    """LiteRT (TensorFlow Lite): converted from torch, quantized by ai-edge-quantizer."""

    name = "tflite"
    title = "LiteRT"
    colour = "#e0700b"
    packages = ("litert-torch", "ai-edge-litert", "ai-edge-quantizer")
    runtimes = ("ai-edge-litert", "tflite-runtime")
    settings = Settings
    tolerances: ClassVar = {"fp32": FLOAT32, "fp16": FLOAT32, "int8": INT8}
    proven: ClassVar = {
        "3.8": "tflite-runtime==2.14.0",
        "3.9": "ai-edge-litert==2.1.0",
        "3.10": "ai-edge-litert==2.3.0",
        "3.11": "ai-edge-litert==2.3.0",
        "3.12": "ai-edge-litert==2.3.0",
        "3.13": "ai-edge-litert==2.3.0",
    }
    hub_library = "litert"
    tags = ("tflite",)
    reads = (".tflite",)
    after_use = _AFTER_USE

    def bundle_files(self) -> dict[str, Path]:
        examples = sorted((self.folder / "examples").iterdir())
        return (
            super().bundle_files()
            | {"phone.py": self.folder / "phone.py"}
            | {f"examples/{file.name}": file for file in examples}
        )

    def install(self) -> dict[str, tuple[str, ...]]:
        last = "pip install tflite-runtime==2.14.0 'numpy<2'"  # for Python 3.8 to 3.11
        return {"runtime": (self.range_of("ai-edge-litert"), last)}


BACKEND = TFLite()
