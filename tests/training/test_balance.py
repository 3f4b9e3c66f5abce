"""Balanced sampling and logit adjustment: closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.training.auto import Facts, plan_recipe
from pipeline.training.balance import epoch_order, log_prior
from pipeline.training.head import _minimise
from pipeline.training.params import Balance, Training
from pipeline.training.teacher import Supervised
from tests.training.conftest import model

LABELS = np.repeat(np.arange(3), (50, 7, 1))


def order(seed: int, balance: str = "sampling") -> np.ndarray:
    return epoch_order(LABELS, balance, np.random.default_rng(seed))  # type: ignore[arg-type]


def test_sampling_shows_every_class_equally_often_in_every_part_of_an_epoch() -> None:
    shown = order(3)
    assert len(shown) == len(LABELS) and np.array_equal(shown, order(3))
    assert not np.array_equal(shown, order(4))
    for end in range(1, len(shown) + 1):
        counts = np.bincount(LABELS[shown[:end]], minlength=3)
        assert counts.max() - counts.min() <= 1
    for name in range(3):
        own = np.flatnonzero(name == LABELS)
        times = np.bincount(shown, minlength=len(LABELS))[own]
        assert times.max() - times.min() <= 1


def test_of_equal_classes_sampling_is_a_permutation() -> None:
    labels = np.arange(60) % 4
    shown = epoch_order(labels, "sampling", np.random.default_rng(0))
    assert np.array_equal(np.sort(shown), np.arange(60))


def test_without_sampling_the_order_is_what_it_was() -> None:
    for balance in ("none", "logit_adjusted"):
        assert np.array_equal(order(5, balance), np.random.default_rng(5).permutation(58))


@pytest.mark.parametrize("balance", ["none", "sampling"])
def test_every_batch_has_its_share_of_images_without_labels(balance: Balance) -> None:
    labels = np.concatenate([np.repeat([0, 1], (80, 20)), np.full(700, -1)])
    shown = epoch_order(labels, balance, np.random.default_rng(0))
    assert set((labels[shown].reshape(-1, 8) >= 0).sum(1)) == {1}
    assert np.array_equal(np.sort(shown[labels[shown] < 0]), np.arange(100, 800))
    counts = np.bincount(labels[shown[labels[shown] >= 0]])
    assert counts.tolist() == ([50, 50] if balance == "sampling" else [80, 20])


def test_the_adjusted_cross_entropy_is_that_of_the_paper() -> None:
    """-log(pi_y e^z_y / sum pi_c e^z_c), also for labels that MixUp has made soft."""
    counts, of = (900, 100), model()
    prior = log_prior(counts, "logit_adjusted")
    assert log_prior(counts, "none") is None and log_prior(counts, "sampling") is None
    pixels, labels = torch.randint(0, 256, (8, 16, 16, 1), dtype=torch.uint8), torch.arange(8) % 2
    of.eval()
    loss = Supervised(of, 0.0, prior)(pixels, labels)["cross_entropy"].item()
    logits = of(pixels).double()
    shares = torch.tensor(counts) / 1000 * logits.exp()
    log_shares = (shares / shares.sum(1, keepdim=True)).log()
    assert loss == pytest.approx(F.nll_loss(log_shares, labels).item(), rel=1e-5)
    soft = torch.rand(8, 2).softmax(1)
    mixed = Supervised(of, 0.0, prior)(pixels, soft)["cross_entropy"].item()
    assert mixed == pytest.approx(-(soft * log_shares).sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("balance", ["sampling", "logit_adjusted"])
def test_where_features_tell_nothing_a_fitted_classifier_favours_no_class(balance: str) -> None:
    """A constant feature: plain, the classifier learns the classes' shares; balanced, nothing."""
    features, labels = torch.zeros(100, 1), torch.from_numpy(np.repeat([0, 1, 2], (80, 15, 5)))
    _, plain = _minimise(features, labels, 3, 0.0)
    assert plain.softmax(0).tolist() == pytest.approx([0.8, 0.15, 0.05], abs=1e-3)
    _, balanced = _minimise(features, labels, 3, 0.0, balance)  # type: ignore[arg-type]
    assert balanced.softmax(0).tolist() == pytest.approx([1 / 3] * 3, abs=1e-3)


def test_only_classes_of_very_different_size_are_balanced_by_themselves() -> None:
    for imbalance, expected in ((1.0, "none"), (2.0, "none"), (2.1, "logit_adjusted")):
        about = Facts(1000, 28, False, imbalance=imbalance)
        assert plan_recipe(Training(), about, "teachers").balance == expected
        assert plan_recipe(Training(balance="none"), about, "students").balance == "none"
