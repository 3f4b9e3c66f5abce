"""Distillation losses: pure functions that params.yaml names, each registered by a decorator.

A new loss is one function with `@register` in one of these modules, or in a new one that is
imported here.
"""

from pipeline.distill.losses import features, logits, relations  # noqa: F401  (they register)
from pipeline.distill.losses.logits import cross_entropy
from pipeline.distill.losses.registry import LOSSES, Loss, find_loss
from pipeline.distill.losses.schedule import weight_factor

__all__ = ["LOSSES", "Loss", "cross_entropy", "find_loss", "weight_factor"]
