"""ExecuTorch as the other rooms see it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from pipeline.backends.base.spec import FLOAT32, INT8, Backend, BackendSettings, versions

_AFTER_USE = """
## In an app

ExecuTorch's libraries for Android, iOS and C++ run model.pte as it is
(<https://docs.pytorch.org/executorch>): method `forward`, input `image` uint8 [1, H, W, C], output
`logits` float32 [1, classes]. They have to bring the XNNPACK backend and the portable kernels.
runtime.py uses the Python interface, which needs torch; an app does not. Beside torch and NumPy,
`pip install --no-deps executorch` is enough: its other packages belong to the compiler.
"""


class Settings(BackendSettings):
    """`backends.executorch` of params.yaml: what is compiled for ExecuTorch."""

    precisions: tuple[Literal["fp32", "int8"], ...] = Field(min_length=1)


class ExecuTorch(Backend):
    """ExecuTorch by the XNNPACK delegate: quantized by torchao's PT2E, lowered from torch."""

    name = "executorch"
    title = "ExecuTorch"
    colour = "#b5179e"
    packages = ("executorch", "torchao")
    runtimes = ("executorch",)
    settings = Settings
    tolerances: ClassVar = {"fp32": FLOAT32, "int8": INT8}
    hub_library = "executorch"
    reads = (".pte",)
    after_use = _AFTER_USE

    def install(self) -> dict[str, tuple[str, ...]]:
        torch = versions(("torch",))["torch"].partition("+")[0]
        return {"runtime": (f"{self.range_of('executorch')} torch=={torch}",)}


BACKEND = ExecuTorch()
