"""The last phase of a run, in which a student learns under int8's rounding.

One set of weights then serves every precision: it is about as accurate in float, and what a
quantizer adds later is what the weights have learnt with (arXiv 1712.05877).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.recall import wilson
from pipeline.networks.fake_quantization import Grid, Rounded, calibrate, fake_quantization
from pipeline.networks.outliers import bound_outliers
from pipeline.networks.pixels import PixelsToLogits


@dataclass(frozen=True)
class Int8Phase:
    """What a run needs to end in such a phase."""

    share: float
    """Of all steps, in (0, 1]; at least one step."""
    images: NDArray[np.uint8]
    """The calibration set [N, H, W, C]; it fixes the ranges when the phase begins."""


class Rounding(ExitStack):
    """The phase of one run. Leaving this context makes the models plain again."""

    def __init__(self, phase: Int8Phase | None, epochs: int, steps: int) -> None:
        """The phase of a run of `epochs` epochs of `steps` steps; None: the run has none."""
        super().__init__()
        self.grids: dict[str, Rounded] | None = None
        self._phase, self._first = phase, epochs * steps
        if phase is not None:
            self._first = min(round((1 - phase.share) * self._first), self._first - 1)
        self.first_epoch = self._first // steps if phase is not None else 0
        """From 0: the first one that ends under rounding. Those before it are not kept."""

    def reach(self, step: int, models: Sequence[PixelsToLogits]) -> bool:
        """Begin, before the first step of the phase; all models take the ranges of the first.

        From here on batch norms keep their running statistics, so outliers would stay: see
        `bound_outliers`.

        Returns:
            Whether the phase begins here.
        """
        if self._phase is None or step != self._first:
            return False
        for model in models:
            bound_outliers(model, self._phase.images)
        self._begin(calibrate(models[0], self._phase.images), models)
        return True

    def warning(self, rows: Sequence[Mapping[str, float]], images: int) -> str | None:
        """What to tell where no epoch of the phase comes near the best one before it.

        Args:
            rows: of all epochs, with `val_top1`.
            images: of val.
        """
        top1s = [row["val_top1"] for row in rows]
        before = max(top1s[: self.first_epoch], default=0.0)
        within = max(top1s[self.first_epoch :])
        if within >= wilson(before * images, images)[0]:
            return None
        return (
            f"warning: val top-1 was {before:.4f}, and is {within:.4f} under int8's rounding; "
            "lower `distill.int8_phase` or the learning rate"
        )

    def state(self) -> dict[str, Any] | None:
        """For a checkpoint: None before the phase."""
        return self.grids and {
            path: (*astuple(its.grid), its.at) for path, its in self.grids.items()
        }

    def restore(self, state: dict[str, Any] | None, models: Sequence[PixelsToLogits]) -> None:
        """Go on from what `state` returned."""
        if state is not None:
            grids = {path: Rounded(Grid(*values), at) for path, (*values, at) in state.items()}
            self._begin(grids, models)

    def _begin(self, grids: dict[str, Rounded], models: Sequence[PixelsToLogits]) -> None:
        self.grids = grids
        for model in models:
            self.enter_context(fake_quantization(model.network, grids))
