"""LiteRT as the other rooms see it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.base.spec import FLOAT32, INT8, Backend, BackendSettings
from pipeline.core.errors import PipelineError

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


MICRO = "tflite-micro"
"""The package of TFLite Micro's interpreter, in the extra `micro`."""

_ON_A_MICROCONTROLLER = """## On a microcontroller

micro/ has the model as a C array (model.cc), the operators that it needs (operators.h), and a
program that classifies a golden image and compares the logits with those of the lab (main.cc):

```sh
cmake -S micro -B build -DTFLITE_MICRO=/path/to/tflite-micro
cmake --build build
build/classify
```

micro/CMakeLists.txt says what TFLITE_MICRO is and how to link a library of your vendor.

- tensor arena: {arena:,} bytes, the least that works on a 64-bit machine with
  {runtime}. A microcontroller's pointers need less, and
  kernels made for its processor may need more. The program prints what it used. The model itself
  stays in flash, as many bytes as model.tflite has.
- operators: {operators}
- on {images} images the logits were within {steps:g} int8 steps of those of LiteRT's reference
  kernels; {same} of them have the class that LiteRT gives on a CPU, whose kernels round otherwise.
  Accuracy and golden.npz were taken with the latter.
"""


class Settings(BackendSettings):
    """`backends.tflite` of params.yaml: what is compiled for LiteRT."""

    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = Field(min_length=1)
    hard_swish: Literal["decomposed", "keep"] = Field(
        "decomposed", description="how int8 computes hard-swish, for which XNNPACK has no kernel"
    )
    target: Literal["cpu", "micro"] = Field(
        "cpu", description="micro: int8 is also verified by TFLite Micro, for microcontrollers"
    )

    @model_validator(mode="after")
    def _micro_is_int8(self) -> Self:
        if self.target == "micro" and "int8" not in self.precisions:
            raise ValueError("`target: micro` is for int8, which is not among the precisions")
        return self


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

    def check(self, settings: BackendSettings) -> None:
        super().check(settings)
        if isinstance(settings, Settings) and settings.target == "micro":
            check_micro()

    def add_files(self, artifact: ArtifactRecord, folder: Path) -> None:
        if artifact.micro:
            check_micro()
            self.module("micro_sources").write(artifact, folder)

    def sections(self, artifact: ArtifactRecord) -> tuple[str, ...]:
        micro = artifact.micro
        if micro is None:
            return ()
        text = _ON_A_MICROCONTROLLER.format(
            arena=micro.arena_bytes,
            runtime=micro.runtime,
            operators=", ".join(f"{count} {name}" for name, count in micro.operators.items()),
            images=micro.images,
            steps=micro.max_steps,
            same=micro.same_class,
        )
        return (text,)

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


def check_micro() -> None:
    """Raise `PipelineError` where TFLite Micro's package is not installed."""
    try:
        importlib.metadata.version(MICRO)
    except importlib.metadata.PackageNotFoundError:
        raise PipelineError(
            f"the package {MICRO} is not installed, which `target: micro` needs",
            where="backends.tflite of params.yaml",
            fix="run `pip install -e '.[micro]'` in the project's folder; the package is made for "
            "Linux on x86-64",
        ) from None


BACKEND = TFLite()
