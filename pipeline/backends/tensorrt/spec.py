"""TensorRT as the other rooms see it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal

from pydantic import Field

from pipeline.backends.base.spec import (
    FLOAT16,
    INT8,
    ONNX_RUNTIME,
    Backend,
    BackendSettings,
)
from pipeline.backends.tensorrt import graph, run
from pipeline.core.errors import PipelineError
from pipeline.export import session
from pipeline.export.evaluate import Runner

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx-cu13": "tensorrt_rtx"}
"""Module by distribution; on a GPU the first that is installed is used."""

MODEL, ENGINE = "model.onnx", "model.engine"
MAX_BATCH = 256
"""Of engines that are built here."""

_NOT_INSTALLED = "neither tensorrt nor tensorrt-rtx is installed"

_BEFORE_USE = """
A Jetson has TensorRT from JetPack (6.1 or newer). Beside it CUDA's driver is all that is needed.
Then, on the GPU that will run it:

```sh
python build_engine.py         # model.engine from model.onnx; timing.cache speeds up the next build
```

trtexec builds the same engine and times it (TensorRT 11 ignores `--stronglyTyped`):

```sh
trtexec --onnx=model.onnx --saveEngine=model.engine --stronglyTyped \\
  --timingCacheFile=timing.cache \\
  --minShapes=image:1x{shape} --optShapes=image:1x{shape} --maxShapes=image:8x{shape}
trtexec --loadEngine=model.engine --shapes=image:1x{shape} --useCudaGraph --noDataTransfers \\
  --useSpinWait
```

Without a GPU, `python verify.py --graph` replays the graph that the engine is built from, on the
CPU (`{graph}`).
"""


class Settings(BackendSettings):
    """`backends.tensorrt` of params.yaml: what is compiled for TensorRT."""

    precisions: tuple[Literal["fp16", "int8"], ...] = Field(min_length=1)


class TensorRT(Backend):
    """TensorRT: a portable, strongly typed ONNX graph, and an engine where a GPU can run it."""

    name = "tensorrt"
    title = "TensorRT"
    colour = "#2da44e"
    runtimes = tuple(MODULES)
    settings = Settings
    tolerances: ClassVar = {"fp16": FLOAT16, "int8": INT8}
    proven: ClassVar = (
        ONNX_RUNTIME  # of the graph: TensorRT itself has the versions of NVIDIA's drivers
    )
    hub_library = "tensorrt"
    tags = ("onnx",)
    portable = MODEL
    device_built = (ENGINE,)
    before_use = _BEFORE_USE

    @property
    def packages(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("onnxruntime", "onnx", *(installed() or ("tensorrt-rtx-cu13",)))

    def open(self, model: Path, threads: int, batch: int) -> Runner:
        """The engine on the GPU; where none runs, the portable graph in ONNX Runtime.

        Where an artifact was compiled without a GPU, its engine is built first, in memory.
        """
        if self.unmeasurable():
            return graph.load(str(model.with_name(MODEL)), threads, batch)
        if model.suffix == ".engine":
            return super().open(model, threads, batch)
        return run.open_engine(run.Network(lab_module(), model).build(MAX_BATCH))

    def evaluator(self) -> str | None:
        if reason := self.unmeasurable():
            onnxruntime = importlib.metadata.version("onnxruntime")
            return f"onnxruntime {onnxruntime} on the same graph ({reason})"
        name, gpu = installed()[0], find_gpu()
        assert gpu  # else it is unmeasurable
        return f"{name} {importlib.metadata.version(name)} on {gpu.name}"

    def unmeasurable(self) -> str | None:
        gpu = find_gpu()
        if gpu is None:
            return "no NVIDIA GPU here"
        if not installed():
            return _NOT_INSTALLED
        reason = run.refusal(lab_module(), gpu.name, gpu.capability)
        return f"{reason}: install tensorrt" if reason else None

    def bundle_files(self) -> dict[str, Path]:
        own = {name: self.folder / name for name in ("build_engine.py", "graph.py")}
        return super().bundle_files() | own | {"session.py": Path(session.__file__)}

    def install(self) -> dict[str, tuple[str, ...]]:
        engine = ("pip install 'tensorrt>=10.3'", "pip install tensorrt-rtx-cu13")
        return {"runtime": engine, "graph": (self.range_of("onnxruntime"),)}


def installed() -> tuple[str, ...]:
    """The distributions of TensorRT that are installed."""
    return tuple(name for name, module in MODULES.items() if importlib.util.find_spec(module))


def lab_module() -> ModuleType:
    """TensorRT's module for the lab. Without a GPU TensorRT for RTX, whose builder needs none.

    Raises:
        PipelineError: where neither is installed.
    """
    names = installed() if find_gpu() else tuple(reversed(installed()))
    if not names:
        raise PipelineError(
            _NOT_INSTALLED, fix="`python -m pipeline doctor` prints the command that installs it"
        )
    return importlib.import_module(MODULES[names[0]])


@cache
def find_gpu() -> run.Device | None:
    """The GPU that engines are built for and run on; None without one or its driver."""
    try:
        return run.Device()
    except RuntimeError:  # no driver, or a driver without a GPU
        return None


BACKEND = TensorRT()
