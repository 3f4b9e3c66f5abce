"""The most sensitive layers stay in float."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pipeline.backends.base.job import Job
from pipeline.compile.params import Quantize
from pipeline.compile.rungs.base import Situation


def candidates(situation: Situation) -> Iterator[Job]:
    """The best job with more and more layers in float."""
    best = situation.best
    for layers in _kept(best, situation.settings):
        yield replace(best, recipe=replace(best.recipe, float_layers=layers))


def _kept(job: Job, settings: Quantize) -> Iterator[tuple[str, ...]]:
    """More and more layers to keep in float: the most sensitive ones that the settings allow.

    Each is followed by the layer that is executed before it: where int8 kernels write int8, that
    layer rounds the input of the sensitive one. A layer whose share of the network is too large is
    skipped, because an artifact with its largest layers in float is neither small nor fast.
    """
    from pipeline.compile.sensitivity import most_sensitive  # it takes seconds to import torch

    costs = _shares(job)
    order = list(costs)
    kept: tuple[str, ...] = ()
    for layer in most_sensitive(job.weights, job.calibration):
        before = order[max(order.index(layer) - 1, 0)]
        for name in dict.fromkeys((layer, before)):
            if name in kept:
                continue
            if len(kept) == settings.float_layers:
                return
            macs, weights = (sum(costs[one][i] for one in (*kept, name)) for i in (0, 1))
            if max(macs, weights) > settings.float_share:
                break
            kept = (*kept, name)
            yield kept


def _shares(job: Job) -> dict[str, tuple[float, float]]:
    """By layer, in order of execution: shares of all multiply-accumulates and of all weights."""
    macs = sum(layer.macs for layer in job.layers)
    weights = sum(layer.weights for layer in job.layers)
    return {layer.name: (layer.macs / macs, layer.weights / weights) for layer in job.layers}
