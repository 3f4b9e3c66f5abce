"""What the stage `bundle` reads of params.yaml; the groups belong to other rooms."""

from __future__ import annotations

from pipeline.backends.base.params import Backends
from pipeline.core.params import Selection
from pipeline.distill.params import Distill
from pipeline.networks.params import PrunedStudents, Students
from pipeline.training.params import Teachers


class BundleParams(Selection):
    """What the stage `bundle` reads."""

    students: Students
    teachers: Teachers
    distill: Distill
    backends: Backends
    prune: PrunedStudents = PrunedStudents()
