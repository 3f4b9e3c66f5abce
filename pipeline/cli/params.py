"""All groups of params.yaml together, as `check` and the other commands read them."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import ConfigDict, model_validator

from pipeline.attribution.params import AttributionParams
from pipeline.bundle.params import BundleParams
from pipeline.compile.params import CompileParams
from pipeline.core.errors import PipelineError
from pipeline.core.params import PARAMS_FILE, load
from pipeline.data.params import PrepareParams
from pipeline.distill.params import DistillParams
from pipeline.export.params import ExportParams
from pipeline.gate.params import GateParams
from pipeline.prune.params import PruneParams


class Params(
    PruneParams, GateParams, AttributionParams, BundleParams, CompileParams, ExportParams,
    DistillParams, PrepareParams,
):  # fmt: skip
    """Every group of params.yaml. Unknown groups are errors; each stage reads a part of these."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="after")
    def _backends_are_valid(self) -> Self:
        for name in dict.fromkeys((*self.backends.enabled, *(self.backends.model_extra or ()))):
            try:
                self.backends.settings(name)
            except PipelineError as error:
                raise ValueError(error.what) from None
        return self


def load_params(path: Path = PARAMS_FILE) -> Params:
    """All groups of params.yaml; `PipelineError` names every mistake: see `core.params.load`."""
    return load(Params, path)
