"""One short script per DVC stage: `python -m stages.NAME` runs it by hand, too."""

from pipeline.core import parent as parent  # it looks for DVC, before imports that take seconds
