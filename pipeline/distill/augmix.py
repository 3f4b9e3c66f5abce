"""Views with mixes of them: AugMix (Hendrycks et al. 2020, arXiv 1912.02781), replayable.

A mix is (1 - m) x + m sum_i w_i chain_i(x): some chains of random operations on the view x, with
weights w of a Dirichlet(1) distribution, and x itself, with m of a Beta(1, 1) distribution. As a
view is a function of (seed, epoch, sample), so are its mixes, and logits that a teacher gave for
the view are the target of its mixes, too.

The operations are those of the paper, which leaves out whatever resembles the corruptions that
robustness is measured with: noise, blur, brightness, contrast and the like. They are in
`pipeline.data.trivial`, at the paper's strengths. Two differences: an operation's level is drawn
uniformly from whole thirtieths, and posterize drops up to 4 bits, where the authors' code keeps up
to 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.augment import WHOLE, put
from pipeline.data.batches import images_per_call
from pipeline.data.params import Augment
from pipeline.data.records import Arrays
from pipeline.data.trivial import OPERATIONS, Ranges, trivial
from pipeline.data.unlabelled import Joined
from pipeline.data.views import Views, seed_of
from pipeline.distill.params import Augmix

MIXED = (
    "autocontrast",
    "equalize",
    "posterize",
    "rotate",
    "solarize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
RANGES = Ranges(shear=0.3, pixels=0, share=1 / 3, degrees=30, thousandths=0, bits=4)
"""At severity 10. No operation of `MIXED` uses `thousandths`."""

_INDICES = np.array([OPERATIONS.index(name) for name in MIXED], np.int8)
_IDENTITY = OPERATIONS.index("identity")
_THIRTIETHS = 3
"""Of the highest level, per severity."""

_IMAGES = 1024
"""That are changed together at most: see `pipeline.data.batches`."""


@dataclass(frozen=True)
class Draws:
    """What decides the mixes of N views: M mixes of K chains, of up to D operations each."""

    operations: NDArray[np.int8]
    """[N, M, K, D], indices into `trivial.OPERATIONS`; identity beyond a chain's end."""
    levels: NDArray[np.int8]
    """[N, M, K, D], in thirtieths of the highest one; negative in the other direction."""
    weights: NDArray[np.int32]
    """[N, M, 1 + K] of the view and its chains, in units of 1 / WHOLE; their sum is WHOLE."""

    def of(self, samples: NDArray[np.integer]) -> Draws:
        """Those of some of the views, in this order."""
        return Draws(self.operations[samples], self.levels[samples], self.weights[samples])


def draw(settings: Augmix, samples: int, *, seed: int, epoch: int) -> Draws:
    """All draws for `samples` views in one epoch.

    They come from Philox, keyed by seed, epoch and what is drawn; those of a view do not depend on
    how many there are.
    """

    def stream(number: int) -> np.random.Generator:
        key = np.array([seed, epoch * 256 + number], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    mixes, chains, depth = settings.mixes, settings.chains, settings.depth
    shape = (samples, mixes, chains, depth)
    lengths = stream(0).integers(1, depth, shape[:3], dtype=np.int8, endpoint=True)
    operations = _INDICES[stream(1).integers(len(_INDICES), size=shape, dtype=np.int8)]
    operations[np.arange(depth) >= lengths[..., None]] = _IDENTITY
    highest = _THIRTIETHS * settings.severity
    levels = stream(2).integers(1, highest, shape, dtype=np.int8, endpoint=True)
    levels *= stream(3).integers(2, size=shape, dtype=np.int8) * 2 - 1
    among = stream(4).dirichlet(np.ones(chains), (samples, mixes))
    changed = stream(5).random((samples, mixes, 1))
    return Draws(operations, levels, _whole(np.concatenate([1 - changed, changed * among], 2)))


def _whole(weights: NDArray[np.float64]) -> NDArray[np.int32]:
    """Weights [..., K] of sum 1, in units of 1 / WHOLE and of sum WHOLE: their sums are rounded."""
    ends = np.rint(weights.cumsum(-1) * WHOLE).astype(np.int32)
    ends[..., -1] = WHOLE
    found: NDArray[np.int32] = np.diff(ends, prepend=np.int32(0), axis=-1)
    return found


def mixes(pixels: torch.Tensor, draws: Draws) -> torch.Tensor:
    """The mixes of every view.

    Args:
        pixels: views uint8 [N, H, W, C], C is 1 or 3.
        draws: of these views.

    Returns:
        uint8 [M, N, H, W, C]: computed in integers, so the same on every device.
    """
    count, many, chains, depth = draws.operations.shape
    views = np.arange(count).repeat(many * chains)
    operations, levels = (its.reshape(-1, depth) for its in (draws.operations, draws.levels))
    size = images_per_call(_IMAGES, *pixels.shape[1:3])
    parts = []
    for some in np.split(np.arange(len(views)), range(size, len(views), size)):
        part = pixels[put(views[some], pixels.device)]
        for step in range(depth):
            part = trivial(part, operations[some, step], levels[some, step], RANGES)
        parts.append(part)
    changed = torch.cat(parts).view(count, many, chains, *pixels.shape[1:])
    weights = put(draws.weights, pixels.device)[..., None, None, None]
    total = pixels[:, None].int() * weights[:, :, 0]  # at most 255 WHOLE
    for chain in range(chains):
        total += changed[:, :, chain].int() * weights[:, :, 1 + chain]
    return ((total + WHOLE // 2) // WHOLE).to(torch.uint8).transpose(0, 1)


class MixedViews(Views):
    """Views, and after all of a batch their mixes: pixels [(1 + M) N, H, W, C] for labels [N]."""

    def __init__(
        self,
        images: NDArray[np.uint8] | Joined,
        labels: NDArray[np.int64],
        augment: Augment,
        *,
        settings: Augmix,
        classes: int,
        seed: int,
        size: int,
        known: Arrays,
    ) -> None:
        """Arguments as of `Views`, whose views are the first N. The mixes are as in `settings`."""
        about: dict[str, Any] = {"classes": classes, "size": size, "known": known}
        super().__init__(images, labels, augment, seed=seed, **about)
        self._settings, self._mix_seed = settings, seed_of("augmix", seed)
        self._mix_draws: tuple[int, Draws] | None = None

    def batch(
        self, epoch: int, samples: NDArray[np.int64], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels and labels of `Views.batch`; the first mix of every view follows, and so on."""
        pixels, labels = super().batch(epoch, samples, device)
        if self._mix_draws is None or self._mix_draws[0] != epoch:
            self._mix_draws = None  # frees the old draws before the new ones are made
            drawn = draw(self._settings, len(self), seed=self._mix_seed, epoch=epoch)
            self._mix_draws = epoch, drawn
        mixed = mixes(pixels, self._mix_draws[1].of(samples))
        return torch.cat([pixels, mixed.flatten(0, 1)]), labels
