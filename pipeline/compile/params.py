"""What the stage `compile` reads of params.yaml; the groups belong to other rooms."""

from __future__ import annotations

from pipeline.backends.base.params import Backends
from pipeline.core.params import Selection
from pipeline.int8.params import Quantize
from pipeline.networks.params import Students


class CompileParams(Selection):
    """What the stage `compile` reads."""

    students: Students
    backends: Backends
    quantize: Quantize
