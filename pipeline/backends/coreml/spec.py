"""Core ML as the other rooms see it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.backends.base.spec import FLOAT16, FLOAT32, INT8, Backend, BackendSettings, versions
from pipeline.export.evaluate import Runner

Target = Literal["iOS15", "iOS16", "iOS17", "iOS18", "iOS26"]

_BEFORE_USE = """
**Nothing here was checked on a Mac.** model.mlpackage was written without one, and Core ML has not
run it: that its logits are right there is UNCHECKED. Accuracy and the logits of golden.npz are of
the same program, read back from the file and evaluated by torch, operator by operator.
`python verify.py` on a Mac is the missing check, and neither it nor runtime.py has run on one. On
any other machine `python verify.py --graph` repeats torch's evaluation (`{graph}`).
"""

_AFTER_USE = """
## In an app

Core ML has no uint8 arrays. The input `image` of model.mlpackage is therefore an image of the size
below, 8 bits grey or RGB, whose 8-bit values are the raw pixels. In an app that is a
`CVPixelBuffer` (grey: `kCVPixelFormatType_OneComponent8`, RGB: `kCVPixelFormatType_32BGRA`), or
what `VNCoreMLRequest` makes of an image; Apple's resizing is not the one of preprocess.json, so
some logits will differ. The output `logits` is a multi-array float32 [1, classes]. The classes are
in the model's metadata, too, as JSON under `classes`.

The model takes one image a call. Core ML chooses among CPU, GPU and Neural Engine, which computes
in float16 and integers only.
"""


class Settings(BackendSettings):
    """`backends.coreml` of params.yaml: what is compiled for Core ML."""

    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = Field(min_length=1)
    deployment_target: Target = Field(
        "iOS17", description="the oldest system that can run it, and macOS of the same year"
    )

    @model_validator(mode="after")
    def _int8_needs_17(self) -> Settings:
        if "int8" in self.precisions and self.deployment_target in ("iOS15", "iOS16"):
            raise ValueError(
                "int8 activations need iOS17 or newer, and deployment_target is "
                f"{self.deployment_target}"
            )
        return self


class CoreML(Backend):
    """Core ML: ML programs that any machine can make, and Apple's systems alone can run."""

    name = "coreml"
    title = "Core ML"
    colour = "#8250df"
    packages = ("coremltools",)
    runtimes = ("coremltools",)
    settings = Settings
    tolerances: ClassVar = {"fp32": FLOAT32, "fp16": FLOAT16, "int8": INT8}
    int8_note = (
        "what is in int8 is what the program states; which of it Core ML computes in int8 depends "
        "on the device"
    )
    hub_library = "coreml"
    reads = (".mlpackage",)
    reads_folders = True
    before_use = _BEFORE_USE
    after_use = _AFTER_USE

    def open(self, model: Path, threads: int, batch: int) -> Runner:
        """Core ML on a Mac; elsewhere the same program by torch."""
        module = "graph" if self.unmeasurable() else "run"
        run: Runner = self.module(module).load(str(model), threads, batch)
        return run

    def evaluator(self) -> str | None:
        if not importlib.util.find_spec("coremltools"):
            return None
        if reason := self.unmeasurable():
            torch = importlib.metadata.version("torch").partition("+")[0]
            return f"torch {torch} on the same program ({reason})"
        return super().evaluator()

    def unmeasurable(self) -> str | None:
        if sys.platform != "darwin":
            return "Core ML runs on Apple's systems alone"
        return super().unmeasurable()

    def bundle_files(self) -> dict[str, Path]:
        return super().bundle_files() | {
            n: self.folder / n for n in ("graph.py", "mil.py", "operators.py")
        }

    def install(self) -> dict[str, tuple[str, ...]]:
        own = versions(("coremltools", "torch", "pillow"))
        torch, coremltools = own["torch"].partition("+")[0], own["coremltools"]
        return {
            "runtime": (f"pip install coremltools=={coremltools} pillow",),
            "graph": (f"pip install torch=={torch} coremltools=={coremltools}",),
        }


BACKEND = CoreML()
