"""edgestill: big image classifiers into small, quantized, verified models at the edge."""

from pipeline.core import parent as parent  # before imports take seconds in which DVC may end
