"""Losses of batches in which some images have no label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.core.errors import PipelineError
from pipeline.data.params import Augment
from pipeline.data.unlabelled import UNKNOWN
from pipeline.networks.pixels import PixelsToLogits
from pipeline.training import loop
from pipeline.training.devices import launch
from pipeline.training.few_labels import STRONG, Consistent, PairedViews, check_unmixed, on_labelled
from pipeline.training.loop import fit
from pipeline.training.objective import Run
from pipeline.training.params import Consistency
from tests.training.conftest import AUGMENT, TRAINING, model, same, split, weights

CPU = torch.device("cpu")


class Given(PixelsToLogits):
    """Answers with the given logits [N, C]: an image of value i with the i-th."""

    def __init__(self, logits: torch.Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.logits = logits

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.logits[pixels[:, 0, 0, 0].long()]


def numbered(count: int) -> torch.Tensor:
    return torch.arange(count).reshape(-1, 1, 1, 1)


def paired() -> PairedViews:
    images, labels = split(1)
    few = np.where(np.arange(len(labels)) < 16, labels, UNKNOWN)
    known = images[:16], labels[:16]
    return PairedViews(images, few, AUGMENT, classes=2, seed=4, size=images.shape[1], known=known)


def test_the_mean_over_parts_is_the_loss_of_the_whole_batch() -> None:
    labels = torch.tensor([2, -1, 0, -1, 1, -1, -1, -1])
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    whole = on_labelled(F.cross_entropy, labels, 3 / 8, logits)
    torch.testing.assert_close(whole, F.cross_entropy(logits[labels >= 0], labels[labels >= 0]))
    parts = [
        on_labelled(F.cross_entropy, labels[i : i + 2], 3 / 8, logits[i : i + 2])
        for i in range(0, 8, 2)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_class_probabilities_of_nothing_are_no_label() -> None:
    logits = torch.randn(2, 3)
    shares = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 0.0]])
    found = on_labelled(F.cross_entropy, shares, 0.5, logits)
    torch.testing.assert_close(found, F.cross_entropy(logits[:1], shares[:1]))


def test_only_confident_answers_teach_the_strong_view() -> None:
    logits = torch.tensor([[1.0, 0.0], [9.0, 0.0], [0.3, 0.0], [0.0, 2.0], [0.0, 2.0]])
    labels = torch.tensor([1, UNKNOWN, UNKNOWN, STRONG, STRONG])
    objective = Consistent(Given(logits), 0.0, Consistency(weight=3.0), 1 / 3)
    terms = objective(numbered(5), labels)
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits[:1], labels[:1]))
    expected = 3.0 * F.cross_entropy(logits[3:4], torch.tensor([0])) / 2
    torch.testing.assert_close(terms["consistency"], expected)


def test_strong_views_are_those_of_the_same_images() -> None:
    pixels, labels = paired().batch(0, np.array([3, 40, 50]), CPU)
    assert labels.tolist()[1:] == [UNKNOWN, UNKNOWN, STRONG, STRONG]
    weak, _ = paired().batch(0, np.array([3]), CPU)
    assert torch.equal(weak[0], pixels[0]) and not torch.equal(pixels[1], pixels[3])
    alone, _ = paired().batch(0, np.array([50]), CPU)
    assert torch.equal(alone, pixels[[2, 4]])


def test_mixed_images_are_refused() -> None:
    with pytest.raises(PipelineError, match=r"teachers\.zoo\.net\.views\.augment"):
        check_unmixed(Augment(mixup=0.2), "net")


def test_shares_of_classes_are_expected_where_labels_are() -> None:
    logits, prior = torch.tensor([[1.0, 0.0], [9.0, 0.0], [0.0, 2.0]]), torch.tensor([-1.0, -2.0])
    given = Given(logits)
    terms = Consistent(given, 0.0, Consistency(), 0.5, prior)(
        numbered(3), torch.tensor([1, UNKNOWN, STRONG])
    )
    expected = F.cross_entropy(logits[:1] + prior, torch.tensor([1]))
    torch.testing.assert_close(terms["cross_entropy"], expected)
    torch.testing.assert_close(terms["consistency"], F.cross_entropy(logits[2:], torch.tensor([0])))


@pytest.mark.usefixtures("folder")
def test_the_estimated_time_is_that_of_both_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "WORTH_AN_ESTIMATE", 1)
    sizes, batch = [], PairedViews.batch

    def seen(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = batch(*arguments)
        sizes.append(len(pixels))
        return pixels, labels

    monkeypatch.setattr(PairedViews, "batch", seen)
    objective = Consistent(model(), 0.0, Consistency(), 16 / 96)
    run = Run("net", "key", 5, TRAINING, 1, 60.0, curves=False)
    fit(launch(TRAINING), objective, paired(), split(2), run)
    assert len(sizes) == 2 + 6 and max(sizes) - min(sizes) <= 1


@pytest.mark.usefixtures("folder")
def test_a_run_in_parts_stopped_and_resumed_ends_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(key: str, checkpoint_seconds: float = 60.0) -> PixelsToLogits:
        training = TRAINING.model_copy(update={"accumulate": 2})
        its = model()
        objective = Consistent(its, 0.0, Consistency(threshold=0.5), 16 / 96)
        run = Run("net", key, 5, training, 2, checkpoint_seconds, curves=False)
        fit(launch(training), objective, paired(), split(2), run)
        return its

    expected = weights(trained("whole"))
    calls = 0
    batch = PairedViews.batch

    def killed(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 17:
            raise KeyboardInterrupt
        return batch(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(PairedViews, "batch", killed)
        with pytest.raises(KeyboardInterrupt):
            trained("stopped", 0.0)
    assert Path(".work").exists()
    assert same(weights(trained("stopped")), expected)
