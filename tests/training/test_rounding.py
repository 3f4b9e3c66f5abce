"""The phase under int8's rounding: when it begins, what is kept, and that it leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.networks.fake_quantization import Rounded, calibrate, fake_quantization
from pipeline.networks.inference import evaluate, predict
from pipeline.networks.pixels import PixelsToLogits
from pipeline.training import rounding
from pipeline.training.params import Recipe
from pipeline.training.records import read_curve
from pipeline.training.rounding import Int8Phase, Rounding
from tests.training.conftest import TRAINING, model, run, same, split, stopped_after, weights

pytestmark = pytest.mark.usefixtures("folder")

IMAGES = split(3, 32)[0]
HALF = Int8Phase(0.5, IMAGES)
"""Of 3 epochs of 6 steps: from the tenth step, within the second epoch."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


RECIPE = TRAINING.model_copy(update={"lr": 0.01})


def changed(**changes: object) -> Recipe:
    return RECIPE.model_copy(update=changes)


@pytest.mark.parametrize(
    ("share", "first", "epoch"), [(0.5, 9, 1), (1.0, 0, 0), (1e-9, 17, 2), (1 / 3, 12, 2)]
)
def test_it_takes_its_share_of_the_last_steps_and_at_least_one(
    share: float, first: int, epoch: int
) -> None:
    student = model()
    phase = Rounding(Int8Phase(share, IMAGES), epochs=3, steps=6)
    assert phase.first_epoch == epoch
    with phase:
        begun = []
        for step in range(18):
            phase.reach(step, (student,))
            begun.append(phase.grids is not None)
    assert begun == [step >= first for step in range(18)]


def test_channels_that_training_forgot_are_quiet_in_it_in_the_average_too() -> None:
    both = model(), model(seed=1)
    forgotten = [its.network.get_buffer("bn1.running_var") for its in both]
    for variance in forgotten:
        variance[0] = 1e-22
    with Rounding(Int8Phase(1.0, IMAGES), epochs=1, steps=1) as phase:
        phase.reach(0, both)
    assert all(variance[0] > 1e-5 for variance in forgotten)


def test_until_then_a_run_is_the_one_without_it_and_then_statistics_stay() -> None:
    plain, rounded = model(), model()
    run(plain, "a", RECIPE)
    before = read_curve("net")
    run(rounded, "b", RECIPE, int8=HALF)
    after = read_curve("net")
    assert after[0] == before[0] and after[1] != before[1]
    assert not same(weights(plain), weights(rounded))


def test_batch_norms_keep_their_statistics_in_it() -> None:
    student = model()
    before = weights(student)
    run(student, "a", RECIPE, int8=Int8Phase(1.0, IMAGES))
    after = weights(student)
    kept = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    assert kept == {name for name in before if name.endswith(STATISTICS)}


def test_a_phase_that_loses_what_chance_does_not_explain_says_so() -> None:
    phase = Rounding(HALF, epochs=3, steps=6)  # its epochs are the last two

    def warned(*top1s: float, images: int = 1000) -> bool:
        return phase.warning([{"val_top1": one} for one in top1s], images) is not None

    assert warned(0.9, 0.4, 0.8)
    assert not warned(0.9, 0.4, 0.89) and not warned(0.4, 0.9, 0.5)
    assert not warned(0.9, 0.4, 0.8, images=20)
    whole = Rounding(Int8Phase(1.0, IMAGES), epochs=1, steps=6)
    assert whole.warning([{"val_top1": 0.1}], 1000) is None


def judged(student: PixelsToLogits, grids: dict[str, Rounded]) -> float:
    with fake_quantization(student.network, grids):
        return evaluate(student, *split(2))[1]


@pytest.mark.parametrize("training", [RECIPE, changed(ema=0.9)], ids=["plain", "averaged"])
def test_its_best_epoch_is_kept_and_the_result_is_a_plain_network(
    training: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, Rounded]] = []

    def remember(*of: Any) -> dict[str, Rounded]:
        found.append(calibrate(*of))
        return found[-1]

    monkeypatch.setattr(rounding, "calibrate", remember)
    student = model()
    kinds = {path: type(module) for path, module in student.named_modules()}
    names = {name for name, _ in student.named_parameters()}
    fitted = run(student, "a", training, int8=HALF)
    rows = [row.val_top1 for row in read_curve("net")]
    assert fitted.best_epoch in (2, 3) and len(found) == 1
    assert judged(student, found[0]) == max(rows[1:]) == rows[fitted.best_epoch - 1]
    assert evaluate(student, *split(2))[1] == fitted.val_top1
    assert {path: type(module) for path, module in student.named_modules()} == kinds
    assert {name for name, _ in student.named_parameters()} == names
    assert not any(module._forward_hooks for module in student.modules())
    assert not any(module._forward_pre_hooks for module in student.modules())


@pytest.mark.parametrize("training", [RECIPE, changed(ema=0.9)], ids=["plain", "averaged"])
@pytest.mark.parametrize("stop", [5, 14])
def test_a_run_that_was_stopped_before_or_in_it_ends_with_the_same_bits(
    training: Recipe, stop: int
) -> None:
    undisturbed, again = model(), model(seed=99)
    run(undisturbed, "a", training, int8=HALF)
    curve = read_curve("net")
    stopped = model()
    with stopped_after(stop):
        run(stopped, "b", training, checkpoint_seconds=0, int8=HALF)
    assert not any(module._forward_pre_hooks for module in stopped.modules())
    run(again, "b", training, int8=HALF)
    assert same(weights(undisturbed), weights(again))
    assert read_curve("net") == curve


def test_it_computes_in_float32_where_the_rest_does_in_bfloat16() -> None:
    student, images = model(), split(2)[0]
    grids = calibrate(student, IMAGES)
    with fake_quantization(student.network, grids):
        exact = predict(student, images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(predict(student, images), exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert predict(student, images).dtype == torch.bfloat16
