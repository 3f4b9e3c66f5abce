"""Rarely excited channels of batch norms: found, made quiet, and nothing else touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.networks.fake_quantization import calibrate, fake_quantization
from pipeline.networks.inference import predict
from pipeline.networks.outliers import FARTHEST, bound_outliers
from pipeline.networks.pixels import PixelsToLogits
from tests.training.conftest import model, same, split, weights

IMAGES = split(1)[0]


def norms(of: PixelsToLogits) -> list[nn.BatchNorm2d]:
    return [module for module in of.modules() if isinstance(module, nn.BatchNorm2d)]


def settled(seed: int = 0) -> PixelsToLogits:
    """A network whose running statistics are those of `IMAGES`."""
    its = model(seed=seed)
    for norm in norms(its):
        norm.momentum = None
    its.train()
    with torch.no_grad():
        its(torch.from_numpy(IMAGES))
    return its.eval()


def farthest(of: PixelsToLogits, images: np.ndarray) -> list[torch.Tensor]:
    """Of every batch norm and channel: how many standard deviations a value is off at most."""
    found: list[torch.Tensor] = []
    hooks = [
        norm.register_forward_pre_hook(
            lambda its, inputs: found.append(
                (
                    (inputs[0] - its.running_mean[:, None, None]).abs()
                    / (its.running_var + its.eps).sqrt()[:, None, None]
                ).amax((0, 2, 3))
            )
        )
        for norm in norms(of)
    ]
    predict(of, images)
    for hook in hooks:
        hook.remove()
    return found


def test_a_usual_network_keeps_its_bits() -> None:
    its = settled()
    before = weights(its)
    assert bound_outliers(its, IMAGES) == 0
    assert same(before, weights(its)) and not its.training
    assert not any(norm._forward_pre_hooks for norm in norms(its))


@pytest.mark.parametrize("place", [0, 3])
def test_a_channel_that_training_forgot_becomes_quiet_and_the_others_stay(place: int) -> None:
    its = settled()
    norm = norms(its)[place]
    assert norm.running_var is not None
    norm.running_var[2] = 1e-22
    before = norm.running_var.clone()
    assert max(one.max() for one in farthest(its, IMAGES)) > FARTHEST
    assert bound_outliers(its, IMAGES) >= 1
    changed = norm.running_var != before
    assert changed[2] and changed.sum() == 1
    assert max(one.max() for one in farthest(its, IMAGES)) <= FARTHEST * 1.001
    assert bound_outliers(its, IMAGES) == 0


def test_int8_keeps_its_levels_where_an_outlier_took_them() -> None:
    """The mean error of simulated int8 against float, relative to the spread of the logits."""
    its = settled()
    norm = norms(its)[1]
    assert norm.running_var is not None
    norm.running_var[1] = 1e-22
    norm.weight.data[1] = 3.0

    def noise() -> float:
        exact, grids = predict(its, IMAGES), calibrate(its, IMAGES)
        with fake_quantization(its.network, grids):
            rounded = predict(its, IMAGES)
        return float((rounded - exact).abs().mean() / exact.std())

    before = noise()
    bound_outliers(its, IMAGES)
    assert noise() < before


def test_statistics_that_are_not_kept_are_left_alone() -> None:
    its = model()
    for norm in norms(its):
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    assert bound_outliers(its, IMAGES) == 0
