"""The loop: same bits from the same seed, also across a stop; mistakes end it early."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.errors import PipelineError
from pipeline.core.patches import import_timm
from pipeline.data.params import Augment
from pipeline.networks.inference import evaluate
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits
from pipeline.training import recipe
from pipeline.training.checkpoints import checkpoint_file
from pipeline.training.curves import Curves
from pipeline.training.params import Recipe
from pipeline.training.records import Epoch, read_curve
from pipeline.training.teacher import Supervised
from tests.training.conftest import (
    RESNET,
    TINY,
    TRAINING,
    model,
    run,
    same,
    split,
    stopped_after,
    views,
    weights,
)

pytestmark = pytest.mark.usefixtures("folder")

EVERYTHING = Augment(flip=True, shift=1, crop=0.5, trivial=True, erase=0.3, mixup=0.4, cutmix=1.0)


def changed(**changes: object) -> Recipe:
    return TRAINING.model_copy(update=changes)


def test_training_learns_and_the_same_seed_gives_the_same_bits() -> None:
    one, two = model(RESNET), model(RESNET)
    fitted = run(one, "a")
    run(two, "b")
    assert same(weights(one), weights(two))
    assert fitted.val_top1 > 0.9
    assert evaluate(one, *split(2))[1] == pytest.approx(fitted.val_top1)


@pytest.mark.parametrize(
    "training",
    [
        changed(ema=0.9),
        changed(optimizer="adamw", lr=0.005, schedule="wsd", clip_norm=1.0, accumulate=2),
        changed(optimizer="muon", lr=0.02, balance="sampling"),
    ],
    ids=["ema", "adamw", "muon and sampling"],
)
@pytest.mark.parametrize("stop", [1, 9])
def test_a_run_that_was_stopped_at_any_step_ends_with_the_same_bits(
    training: Recipe, stop: int
) -> None:
    dropping = Network(**TINY.model_dump() | {"args": {"drop_rate": 0.3}})
    undisturbed, again = model(dropping), model(dropping, seed=99)
    run(undisturbed, "a", training, augment=EVERYTHING)
    curve = read_curve("net")
    with stopped_after(stop):
        run(model(dropping), "b", training, augment=EVERYTHING, checkpoint_seconds=0)
    run(again, "b", training, augment=EVERYTHING)  # everything comes from the checkpoint
    assert same(weights(undisturbed), weights(again))
    assert read_curve("net") == curve


def test_the_best_epoch_on_val_is_kept() -> None:
    of = model()
    fitted = run(of, "a")
    assert fitted.val_top1 == max(row.val_top1 for row in read_curve("net"))
    assert evaluate(of, *split(2))[1] == pytest.approx(fitted.val_top1)


def test_of_epochs_that_few_images_cannot_tell_apart_the_one_of_the_lowest_loss_is_kept() -> None:
    of, few = model(RESNET), split(2, 4)
    fitted = run(of, "a", val=few, epochs=4)
    rows = read_curve("net")
    best = [row for row in rows if row.val_top1 == max(one.val_top1 for one in rows)]
    assert len(best) > 1 and best[0].val_loss > min(row.val_loss for row in best)
    kept = rows[fitted.best_epoch - 1]
    assert kept == min(best, key=lambda row: row.val_loss)
    assert evaluate(of, *few) == pytest.approx((kept.val_loss, kept.val_top1))


def test_averaged_weights_ship_and_are_the_ones_judged() -> None:
    plain, averaged = model(), model()
    run(plain, "a")
    fitted = run(averaged, "b", changed(ema=0.9))
    assert not same(weights(plain), weights(averaged))
    assert evaluate(averaged, *split(2))[1] == pytest.approx(fitted.val_top1)


def test_accumulated_parts_make_the_step_of_the_whole_batch() -> None:
    """Without batch norm, whose statistics are those of each part."""
    bare = Network(arch="test_vit4", args={"img_size": 16, "patch_size": 8})
    whole, parts = model(bare), model(bare)
    run(whole, "a", changed(lr=0.01), epochs=1)
    run(parts, "b", changed(lr=0.01, accumulate=4), epochs=1)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(tensor, weights(parts)[name], rtol=1e-4, atol=1e-5)


def test_no_epochs_leave_the_network_unchanged() -> None:
    of = model()
    before = weights(of)
    fitted = run(of, "a", epochs=0)
    assert same(before, weights(of)) and fitted.best_epoch == 0
    (row,) = read_curve("net")
    assert row.train_loss == pytest.approx(evaluate(of, *split(1))[0])


def test_curves_have_the_same_layout_without_dvclive(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"train_loss": 0.5, "val_loss": 0.25, "val_top1": 0.75, "lr": 0.1}
    rows = [row, row | {"lr": 0.01}]
    Curves("live", rows, tensorboard=False, quiet=False)
    monkeypatch.setitem(sys.modules, "dvclive.live", None)
    Curves("plain", rows, tensorboard=False, quiet=False)
    assert read_curve("plain") == read_curve("live")
    names = [{p.name for p in Path(f"metrics/curves/{n}").rglob("*")} for n in ("live", "plain")]
    assert names[0] == names[1]


def test_tensorboard_gets_the_same_values_on_demand() -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(model(RESNET), "a", changed(tensorboard=True), epochs=2)
    events = EventAccumulator(".work/tensorboard/net")
    events.Reload()
    for field in Epoch.model_fields:
        shown = [event.value for event in events.Scalars(field)]
        assert shown == pytest.approx([getattr(row, field) for row in read_curve("net")])


def test_tensorboard_that_is_missing_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(PipelineError, match=r"pip install 'edgestill\[tensorboard\]'"):
        run(model(RESNET), "a", changed(tensorboard=True), epochs=2)


def test_bfloat16_trains_in_mixed_precision_and_keeps_float32_weights() -> None:
    of = model(RESNET)
    run(model(RESNET), "a", epochs=1)
    (full,) = read_curve("net")
    run(of, "b", changed(precision="bf16"), epochs=1)
    (mixed,) = read_curve("net")
    assert mixed.train_loss != full.train_loss == pytest.approx(mixed.train_loss, rel=0.05)
    assert all(t.dtype == torch.float32 for t in weights(of).values() if t.is_floating_point())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recorded_logits_and_mixed_labels_reach_the_losses_in_float32(precision: str) -> None:
    """Half precision cannot tell the logits of near equals apart."""
    seen: list[torch.dtype] = []

    class Looking(Supervised):
        def forward(self, *arguments: Any) -> dict[str, torch.Tensor]:
            pixels, labels, recorded, _ = arguments
            seen.extend(tensor.dtype for tensor in (labels, recorded))
            return super().forward(pixels, labels)

    class Recorded:
        epochs = 3

        def batch(self, *arguments: Any) -> torch.Tensor:
            return torch.zeros(1, len(arguments[1]), 2)

    run(
        Looking(model(RESNET), 0.0), "a", changed(precision=precision),
        epochs=1, augment=Augment(mixup=1.0), recorded=Recorded(),
    )  # fmt: skip
    assert set(seen) == {torch.float32}


def test_a_diverging_run_stops_with_advice_and_leaves_no_checkpoint() -> None:
    with pytest.raises(PipelineError, match="lower `lr`"):
        run(model(), "a", changed(lr=1e30))
    assert not list(Path(".work").rglob("*.pt"))


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (changed(batch_size=97), "lower `batch_size`"),
        (changed(accumulate=3), "a batch of 16 cannot be divided"),
        (changed(optimizer="sgdd"), "no optimizer `sgdd`"),
        (changed(schedule="cosin"), "schedule `cosin`"),
        (changed(schedule_options={"k_dcay": 2}), "k_dcay"),
        (changed(precision="fp16"), "float16 training needs a GPU"),
    ],
)
def test_a_mistake_ends_the_run_before_it_starts(training: Recipe, said: str) -> None:
    with pytest.raises(PipelineError, match=said):
        run(model(), "a", training)


def test_lr_rises_linearly_then_falls_as_a_half_cosine() -> None:
    """Loshchilov, Hutter 2016, arXiv 1608.03983, without restarts."""
    objective = Supervised(model(), 0.0)
    optimizer = recipe.build_optimizer(objective, TRAINING, "net")
    schedule = recipe.build_schedule(optimizer, changed(warmup=0.2), 10, 10, "net")
    found = []
    for step in range(101):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"] / TRAINING.lr)
    assert np.allclose(np.diff(found[:20]), 1 / 21)
    assert found[20] == pytest.approx(1.0) and found[60] == pytest.approx(0.5)
    assert found[100] == pytest.approx(0.0) and max(found) <= 1.0
    assert found[70] == pytest.approx(0.5 * (1 + math.cos(math.pi * 50 / 80)))


def groups(network: Network, **changes: object) -> list[tuple[dict[str, Any], set[str]]]:
    """The parameter groups of a network of 16-pixel images, and the names in each."""
    objective = Supervised(model(network), 0.0)
    names = {id(one): name for name, one in objective.named_parameters()}
    made = recipe.build_optimizer(objective, changed(**changes), "net")
    return [(group, {names[id(one)] for one in group["params"]}) for group in made.param_groups]


def test_muon_leaves_the_widest_matrices_to_adamw() -> None:
    """The square of the smaller side is what orthogonalising costs."""
    network = Network(arch="mobilenetv4_conv_small_050")
    found = groups(network, optimizer="muon")
    sent = set().union(*(names for group, names in found if group.get("use_fallback")))
    assert sent == {"model.network.conv_head.weight"}
    weight = model(network).network.conv_head.weight
    assert weight.shape == (1280, 480, 1, 1) and recipe.WIDE < 480
    assert not any(group.get("use_fallback") for group, _ in groups(RESNET, optimizer="muon"))


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
def test_what_a_networks_authors_do_not_decay_is_not_decayed(layer_decay: float) -> None:
    vit = Network(arch="test_vit4", args={"img_size": 16, "patch_size": 8})
    found = groups(vit, optimizer="adamw", weight_decay=0.1, layer_decay=layer_decay)
    decayed = set().union(*(names for group, names in found if group["weight_decay"]))
    assert "model.network.blocks.0.attn.qkv.weight" in decayed
    assert not {"model.network.pos_embed", "model.network.cls_token"} & decayed


def test_float32_is_what_muon_computes_in_on_a_cpu() -> None:
    import_timm()
    from timm.optim import muon

    of: PixelsToLogits = model(RESNET)
    recipe.build_optimizer(Supervised(of, 0.0), changed(optimizer="muon"), "net")
    coefficients = [(2.0, -1.5, 0.5)]
    made = muon.zeropower_via_newtonschulz(torch.eye(4), 5, coefficients)
    assert made.dtype == torch.float32


def test_the_estimate_leaves_no_trace_and_a_run_that_is_too_long_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = model(), model()
    ema = changed(optimizer="adamw", ema=0.9)
    run(one, "a", ema, epochs=2)
    assert "steps of" not in capsys.readouterr().out, "12 steps are over before it"
    monkeypatch.setattr("pipeline.training.loop.WORTH_AN_ESTIMATE", 1)
    run(two, "b", ema, epochs=2)
    assert re.search(r"net: 12 steps of \S+ s, some 1 min, with", capsys.readouterr().out)
    assert same(weights(one), weights(two))
    with pytest.raises(PipelineError, match="are more than `max_hours`, 1e-09"):
        run(model(), "c", changed(max_hours=1e-9), epochs=2)
    assert not checkpoint_file("c").exists()


def test_frozen_batch_norms_keep_their_statistics_while_their_weights_learn() -> None:
    network = model(RESNET)
    statistics = {k: v for k, v in weights(network).items() if "running" in k or "tracked" in k}
    before = weights(network)
    run(network, "a", changed(batch_norm="frozen"), epochs=1)
    after = weights(network)
    assert statistics and all(torch.equal(after[name], kept) for name, kept in statistics.items())
    assert not torch.equal(before["network.bn1.weight"], after["network.bn1.weight"])


def test_a_training_that_is_longer_than_its_recording_sees_the_same_views_again() -> None:
    shown: list[tuple[int, bytes]] = []

    class Recorded:
        epochs = 2

        def batch(
            self, epoch: int, samples: np.ndarray[Any, Any], device: torch.device
        ) -> torch.Tensor:
            shown.append((epoch, views().batch(epoch, samples, device)[0].numpy().tobytes()))
            return torch.zeros(1, len(samples), 2, device=device)

    class Seeing(Supervised):
        def forward(
            self,
            pixels: torch.Tensor,
            labels: torch.Tensor,
            recorded: torch.Tensor | None = None,
            progress: float = 0.0,
        ) -> dict[str, torch.Tensor]:
            assert shown[-1][1] == pixels.numpy().tobytes()
            return super().forward(pixels, labels, recorded, progress)

    run(Seeing(model(RESNET), 0.0), "a", epochs=5, recorded=Recorded())
    assert [epoch for epoch, _ in shown[:: len(shown) // 5]] == [0, 1, 0, 1, 0]
