"""What a backend tells the other rooms about itself; nobody else keeps a list of backends."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, cast, get_args

from pydantic import field_validator

from pipeline.backends.base.anatomy import Reader
from pipeline.backends.base.job import Compiler
from pipeline.backends.base.records import ArtifactRecord
from pipeline.core.errors import PipelineError
from pipeline.core.params import Group, differ
from pipeline.export.evaluate import Runner


class BackendSettings(Group):
    """The part of `backends` in params.yaml that belongs to one backend."""

    precisions: tuple[Any, ...]
    """Subclasses narrow it to the literals that the backend knows."""

    @field_validator("precisions")
    @classmethod
    def _precisions_differ(cls, precisions: tuple[Any, ...]) -> tuple[Any, ...]:
        return differ(precisions)


@dataclass(frozen=True)
class Tolerance:
    """How far another machine's logits may differ from the recorded ones.

    Errors are relative to the largest absolute recorded logit.
    """

    min_same_argmax: float
    max_error: float
    mean_error: float
    reason: str


FLOAT32 = Tolerance(
    min_same_argmax=0.96,
    max_error=2e-4,
    mean_error=5e-5,
    reason="the order of float32 sums changes logits by about 1e-6; bfloat16 and float16, which "
    "some runtimes use without being asked, change them by more than this",
)
"""The largest error seen between kernels is 2e-6."""

FLOAT16 = Tolerance(
    min_same_argmax=0.9,
    max_error=0.02,
    mean_error=0.004,
    reason="float16 has 11 significant bits, and kernels sum in orders of their own",
)

INT8 = Tolerance(
    min_same_argmax=0.9,
    max_error=0.12,
    mean_error=0.02,
    reason="int8 kernels round differently on other CPUs, GPUs and versions, and a difference of "
    "one step grows through the layers; sums that overflow differ by more than this",
)
"""In int8 steps of the logits, of which the largest logit has 127: 15, and 2.5 in the mean.

The yardstick is the same quantized graph with its roundings computed in float32, and LiteRT's
reference kernels: right evaluations, which differ from the kernels in single steps only. They are
at most 5.0 steps off, and 0.7 in the mean (two students, all backends); other versions and CPUs
at most 9 and 1.5. What is another graph is farther: OpenVINO's own int8 on Arm 19 and 3.9 steps,
sums that overflow on x86 without VNNI, a defect, 14 to 32."""


ONNX_RUNTIME = {
    "3.8": "onnxruntime==1.19.2",
    "3.9": "onnxruntime==1.19.2",
    "3.10": "onnxruntime==1.23.2",
    "3.11": "onnxruntime==1.32.0",
    "3.12": "onnxruntime==1.32.0",
    "3.13": "onnxruntime==1.32.0",
}
"""`Backend.proven` of the backends whose graphs ONNX Runtime runs."""


class Backend:
    """A runtime as the other rooms see it.

    Each backend folder has a `spec.py` with one instance of a subclass, registered under
    `edgestill.backends` in pyproject.toml. Nothing here imports a converter or a runtime before
    it is used.
    """

    name: ClassVar[str]
    """In params.yaml, and of the extra in pyproject.toml."""
    title: ClassVar[str]
    """In tables, plots and messages."""
    colour: ClassVar[str]
    """In plots, as #rrggbb."""
    packages: ClassVar[tuple[str, ...]]
    """Distributions that compiling needs."""
    runtimes: ClassVar[tuple[str, ...]]
    """Distributions any of which runs its models; `evaluator` begins with one of them."""
    settings: ClassVar[type[BackendSettings]]
    """Its settings in params.yaml."""
    tolerances: ClassVar[Mapping[str, Tolerance]]
    """By precision, for `verify.py` of a bundle."""
    proven: ClassVar[Mapping[str, str]] = {}
    """By Python's version, the oldest first: what pip installs there by a command of `install`, as
    NAME==VERSION. Bundles verified with each; tests/bundle/test_versions.py does it again."""
    int8_note: ClassVar[str] = ""
    """For a bundle's README: where its int8 layers are not int8."""
    hub_library: ClassVar[str]
    """What the Hugging Face hub calls the library that opens the model."""
    tags: ClassVar[tuple[str, ...]] = ()
    """What the hub calls the file, where that is not the library."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Suffixes of files of anybody that its module `reader` can inspect: see `base.anatomy`."""
    reads_folders: ClassVar[bool] = False
    """Whether these are folders, like Core ML's packages."""
    portable: ClassVar[str | None] = None
    """The file that ships in place of what `device_built` names; null: the compiled one."""
    device_built: ClassVar[tuple[str, ...]] = ()
    """Compiled files that fit one device only, and are not shipped."""
    before_use: ClassVar[str] = ""
    """Markdown in a bundle's README on what to do before the first run; see `bundle.model_card`."""
    after_use: ClassVar[str] = ""
    """Markdown in a bundle's README behind the general usage."""

    @cached_property
    def folder(self) -> Path:
        """The folder of this backend's code."""
        return Path(str(importlib.import_module(type(self).__module__).__file__)).parent

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that params.yaml may ask for."""
        literal = get_args(self.settings.model_fields["precisions"].annotation)[0]
        return get_args(literal)

    def module(self, name: str) -> ModuleType:
        """A module of this backend's folder; it may import the runtime or a converter."""
        package = type(self).__module__.rpartition(".")[0]
        return importlib.import_module(f"{package}.{name}")

    def compiler(self, settings: BackendSettings) -> Compiler:
        """The `Compiler` of this backend's `compile.py`."""
        compiler: Compiler = self.module("compile").Compiler(settings)
        return compiler

    def reader(self) -> Reader:
        """The module `reader` of a backend that `reads` files."""
        return cast(Reader, self.module("reader"))

    def load(self, model: Path, threads: int, batch: int = 0) -> Runner:
        """Open a compiled file with `run.py` of this folder, the very file that bundles ship.

        Args:
            model: the file that `artifact.json` names.
            threads: of the CPU.
            batch: images per call, exactly; 0: any number in each call.

        Raises:
            PipelineError: where the runtime is not installed or cannot open the file.
        """
        if self.evaluator() is None:
            raise PipelineError(
                f"{self.title} cannot run here: {self.unmeasurable()}",
                where=str(model),
                fix="`python -m pipeline doctor` prints the command that installs it",
            )
        if not model.exists():
            raise PipelineError("there is no such model", where=str(model), fix="run `dvc repro`")
        try:
            return self.open(model, threads, batch)
        except PipelineError:
            raise
        except Exception as error:  # each runtime has its own
            raise PipelineError(
                f"{self.title} cannot open the model: {error}", where=str(model)
            ) from error

    def open(self, model: Path, threads: int, batch: int) -> Runner:
        """`load` without its checks, for backends that open files in another way."""
        run: Runner = self.module("run").load(str(model), threads, batch)
        return run

    def evaluator(self) -> str | None:
        """Name and version of the runtime that `load` uses here; null if it cannot run here."""
        for package in self.runtimes:
            try:
                return f"{package} {importlib.metadata.version(package)}"
            except importlib.metadata.PackageNotFoundError:
                continue
        return None

    def unmeasurable(self) -> str | None:
        """Why latencies cannot be taken here (no package, no GPU); null where they can."""
        return None if self.evaluator() else f"the package {self.runtimes[0]} is not installed"

    def is_own(self, evaluator: str) -> bool:
        """Whether answers by `evaluator` come from this runtime itself."""
        return evaluator.startswith(tuple(f"{package} " for package in self.runtimes))

    def check(self, settings: BackendSettings) -> None:
        """Raise `PipelineError` if a package is missing that compiling with `settings` needs."""
        del settings
        versions(self.packages)

    def bundle_files(self) -> dict[str, Path]:
        """Files of a bundle beside the model and the general scripts: source by name in it.

        Those of the folder web/, if there is one, run the model in a browser: runtime.js opens it,
        and runtime.json pins the npm packages that it needs.
        """
        web = sorted((self.folder / "web").glob("*"))
        return {"runtime.py": self.folder / "run.py"} | {f"web/{file.name}": file for file in web}

    def add_files(self, artifact: ArtifactRecord, folder: Path) -> None:
        """Write into a bundle's `folder`, which has all other files, what belongs to `artifact`."""

    def sections(self, artifact: ArtifactRecord) -> tuple[str, ...]:
        """Sections of a bundle's README, in Markdown, that say more of `artifact`."""
        del artifact
        return ()

    def install(self) -> dict[str, tuple[str, ...]]:
        """By module of the bundle that needs packages: commands, any of which installs them."""
        return {"runtime": (self.range_of(self.runtimes[0]),)}

    def range_of(self, package: str) -> str:
        """The command that installs `package`: the oldest version that is proven, the one that is
        installed here, or what pip finds between for an older Python."""
        newest = versions((package,))[package]
        pins = (pin.split("==") for pin in self.proven.values())
        oldest = next((version for name, version in pins if name == package), newest)
        if oldest == newest:
            return f"pip install {package}=={newest}"
        return f"pip install '{package}>={oldest},<={newest}'"


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Installed versions by distribution name; `PipelineError` names what is missing."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise PipelineError(
                f"the package {package} is not installed",
                fix="`python -m pipeline doctor` prints the command that installs it",
            ) from None
    return found
