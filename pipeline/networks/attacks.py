"""Adversarial images: small changes of raw pixels that raise a loss, found by its gradient.

All of it is in units of pixels: images are NHWC in [0, 255], and `epsilon` 8 is what papers call
8/255. No pixel changes by more than epsilon (the L-infinity norm) or leaves [0, 255].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]
"""Perturbed pixels float32 [N, H, W, C] in [0, 255] to a scalar. A sum over images, or a mean:
only the sign of its gradient is used."""

HIGHEST = 255.0


def fgsm(loss: Loss, pixels: Tensor, *, epsilon: float) -> Tensor:
    """The fast gradient sign method: x + epsilon sign(dloss/dx), inside [0, 255].

    Goodfellow, Shlens, Szegedy 2015, arXiv 1412.6572. See `pgd` for arguments and result.
    """
    return pgd(loss, pixels, epsilon=epsilon, steps=1, step_size=epsilon, start=None)


def pgd(
    loss: Loss,
    pixels: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    start: Tensor | None,
) -> Tensor:
    """Projected gradient ascent on a loss, in the cube of `epsilon` around each image.

    x <- P(x + step_size sign(dloss/dx)), `steps` times; P clips to [pixels - epsilon, pixels +
    epsilon] and [0, 255]. Madry et al. 2018, arXiv 1706.06083. The result is the last x, which is
    not rounded: `to_uint8` does that. No gradient reaches a parameter's `grad`, and it also
    works inside `torch.no_grad()`. Whether networks are in eval mode is the caller's choice.

    Args:
        loss: what to maximise, of perturbed pixels.
        pixels: raw images [N, H, W, C], uint8 or float, in [0, 255].
        epsilon: the largest change of a pixel, in pixel values: 8 for 8/255.
        steps: of the ascent.
        step_size: in pixel values.
        start: the initial perturbation in pixel values, of the images' shape: see `random_start`.
            None starts at the images.

    Returns:
        Perturbed pixels float32 [N, H, W, C] in [0, 255], without gradients.
    """
    clean = pixels.detach().float()
    low, high = (clean - epsilon).clamp_(min=0), (clean + epsilon).clamp_(max=HIGHEST)
    perturbed = clean if start is None else (clean + start.detach()).clamp_(low, high)
    for _ in range(steps):
        with torch.enable_grad():
            perturbed = perturbed.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(perturbed), perturbed)
        perturbed = (perturbed.detach() + step_size * gradient.sign()).clamp_(low, high)
    return perturbed


def random_start(pixels: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """A perturbation float32, uniform in [-epsilon, epsilon], of the shape of `pixels`.

    It is drawn on the generator's device, then moved: with a generator on the CPU it is the same
    on every device.
    """
    uniform = torch.rand(pixels.shape, generator=generator, device=generator.device)
    return ((2 * uniform - 1) * epsilon).to(pixels.device)


def to_uint8(perturbed: Tensor, pixels: Tensor, epsilon: float) -> Tensor:
    """The nearest uint8 images that are within `epsilon` of the original ones.

    Artifacts take uint8. Where epsilon is a whole number, this is plain rounding; else a change of
    2.5 pixels would become one of 3 without the limit.

    Args:
        perturbed: float32 [N, H, W, C] in [0, 255].
        pixels: the original images, uint8 [N, H, W, C].
        epsilon: the largest change of a pixel, in pixel values.

    Returns:
        uint8 [N, H, W, C].
    """
    clean, most = pixels.float(), float(int(epsilon))
    limited = perturbed.round().clamp(clean - most, clean + most)
    return limited.clamp_(0, HIGHEST).to(torch.uint8)
