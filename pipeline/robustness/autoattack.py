"""AutoAttack's standard set, by the package pyautoattack, which the extra `robust` installs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.core.errors import PipelineError
from pipeline.networks.attacks import HIGHEST
from pipeline.networks.pixels import PixelsToLogits

PACKAGE = "pyautoattack"

_STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
_TARGETED_DLR = "apgd-t"
_LEAST_FOR_DLR = 4  # the targeted DLR loss needs the four largest logits
_TARGETS = 9  # classes that the targeted attacks try


def require_autoattack() -> dict[str, str]:
    """The package and its version; `PipelineError` where it is not installed."""
    try:
        return {PACKAGE: importlib.metadata.version(PACKAGE)}
    except importlib.metadata.PackageNotFoundError:
        raise PipelineError(
            f"AutoAttack needs the package {PACKAGE}, which is not installed",
            where="robustness.autoattack",
            fix="install the extra `robust`: `pip install '.[robust]'`, or set it to false",
        ) from None


def attacks_for(classes: int) -> tuple[str, ...]:
    """The standard set; without targeted APGD on the DLR loss for fewer than four classes."""
    return tuple(name for name in _STANDARD if classes >= _LEAST_FOR_DLR or name != _TARGETED_DLR)


def autoattack(
    model: PixelsToLogits, pixels: Tensor, labels: Tensor, *, epsilon: float, seed: int
) -> Tensor:
    """Attack images by AutoAttack's standard version, in the L-infinity norm.

    Croce and Hein 2020, arXiv 2003.01690: untargeted APGD on the cross entropy, targeted APGD on
    the DLR loss and targeted FAB, both for the nine likeliest wrong classes, or all if there are
    fewer, and Square Attack with 5000 queries. Each attacks what the ones before did not change.

    Args:
        model: the network, in eval mode.
        pixels: uint8 [N, H, W, C], on the model's device.
        labels: int64 [N].
        epsilon: largest change of a pixel, in pixel values.
        seed: of random starts and of Square Attack.

    Returns:
        float32 [N, H, W, C] in [0, 255]: the image itself where no attack succeeded, and where it
        was answered wrongly from the start.
    """
    from pyautoattack import AutoAttack

    network = _UnitImages(model).eval()
    images = pixels.float().permute(0, 3, 1, 2).contiguous() / HIGHEST
    classes = model(pixels[:1]).shape[1]
    # It seeds torch's own generator, and FAB sums up in a way that GPUs have no deterministic
    # kernel for.
    with torch.random.fork_rng(), _deterministic_where_possible():
        attack = AutoAttack(
            network, version="custom", attacks=list(attacks_for(classes)), seed=seed,
            eps=epsilon / HIGHEST, device=pixels.device,
        )  # fmt: skip
        attack.apgd.n_restarts = attack.fab.n_restarts = 1  # as its standard version has them
        targets = min(_TARGETS, classes - 1)
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
        found, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    changed: Tensor = found.permute(0, 2, 3, 1) * HIGHEST
    return changed.detach()


@contextmanager
def _deterministic_where_possible() -> Iterator[None]:
    """Within this, an operator without a deterministic kernel is a warning; CPUs have them all."""
    strict = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(strict, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict)


class _UnitImages(nn.Module):
    """Logits of images float32 [N, C, H, W] in [0, 1], as the package takes them."""

    def __init__(self, model: PixelsToLogits) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.model(images.permute(0, 2, 3, 1) * HIGHEST))
