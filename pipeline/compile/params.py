"""What the stage `compile` reads of params.yaml; the groups belong to other rooms."""

from __future__ import annotations

from pipeline.backends.base.params import ArtifactParams
from pipeline.int8.params import Quantize


class CompileParams(ArtifactParams):
    """What the stage `compile` reads."""

    quantize: Quantize
