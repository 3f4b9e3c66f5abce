"""Learning from attacked images: RSLAD's formulas, the attack's limits, what it leaves alone."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.core.params import invalid
from pipeline.distill.losses.logits import cross_entropy, kl
from pipeline.distill.objective import Distillation
from pipeline.distill.params import Augmix, Distill, LossTerm, Robust, Rslad, read_robust
from pipeline.distill.robust import attacked, jensen_shannon, view_shares
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.training import loop
from pipeline.training.devices import launch
from pipeline.training.loop import fit
from pipeline.training.objective import Run
from pipeline.training.params import Recipe
from pipeline.training.rounding import Int8Phase
from tests.distill.conftest import teachers
from tests.training.conftest import (
    RESNET,
    TRAINING,
    model,
    run,
    same,
    split,
    stopped_after,
    views,
    weights,
)
from tests.training.test_step import captured  # noqa: F401 - a fixture

RSLAD = Rslad(method="rslad", steps=3, step_size=4)
AUGMIX = Augmix(method="augmix", mixes=2, share=2 / 3, severity=3, consistency=12)
KL1 = LossTerm(name="kl", weight=1.0, options={"temperature": 1.0})
LABELS = LossTerm(name="cross_entropy", weight=0.5)
HINT = LossTerm(name="hint", weight=0.5, taps=("late",))
DROPPING = Network(**RESNET.model_dump() | {"args": RESNET.args | {"drop_rate": 0.3}})


class Fixed:
    """A recording of the same logits for a sample in every epoch."""

    epochs = 2

    def batch(self, _: int, samples: np.ndarray, device: torch.device) -> torch.Tensor:
        random = np.random.default_rng(0).normal(size=(96, 2)).astype(np.float32)
        return torch.from_numpy(random[samples])[None].to(device)


def taught_by(
    robust: Robust | None,
    terms: tuple[LossTerm, ...] = (KL1,),
    student: PixelsToLogits | None = None,
    **more: Any,
) -> Distillation:
    pixels = torch.from_numpy(split(1)[0][:1])
    known = {"resnet": model(RESNET, seed=8)} if any(term.taps for term in terms) else {}
    return Distillation(
        student or model(RESNET), known, terms, RESNET.taps, teachers(), pixels, robust=robust,
        **more,
    )  # fmt: skip


def batch(n: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images, labels = split(1)
    logits = torch.randn(1, n, 2, generator=torch.Generator().manual_seed(1))
    return torch.from_numpy(images[:n]), torch.from_numpy(labels[:n]), logits


class Linear(nn.Module):
    """One matrix over all pixels."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, pixels) / 50)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weight.T


def linear() -> PixelsToLogits:
    torch.manual_seed(0)
    return PixelsToLogits(Linear(16, 3), student_normalisation(1))


def test_on_a_linear_model_with_one_step_the_attack_and_the_loss_are_closed_forms() -> None:
    """The slope of KL(t || softmax(W x)) is (softmax(W x) - t) W / 64, of one sign everywhere."""
    student, settings = linear(), Rslad(method="rslad", steps=1, step_size=40, epsilon=8)
    pixels = torch.randint(60, 190, (5, 4, 4, 1), dtype=torch.uint8)
    target = 3 * torch.randn(5, 3)
    torch.manual_seed(7)
    found = attacked(student, pixels, target, settings)
    torch.manual_seed(7)
    start = pixels + torch.empty(pixels.shape).uniform_(-8, 8)
    weight = student.network.get_parameter("weight").detach()

    def logits(x: torch.Tensor) -> torch.Tensor:
        return ((x.float() - 128) / 64).flatten(1) @ weight.T

    slope = (logits(start).softmax(1) - target.softmax(1)) @ weight
    expected = pixels + 8 * slope.sign().view_as(start)  # a step of 40 ends at the cube's side
    torch.testing.assert_close(found, expected)
    objective = Distillation(
        student, {}, (KL1,), {}, teachers(), pixels, robust=settings
    )  # fmt: skip
    torch.manual_seed(7)
    terms = objective(pixels, torch.zeros(5, dtype=torch.long), target[None])
    assert list(terms) == ["kl"]
    log_t = target.log_softmax(1)
    attacked_part, clean_part = (
        (log_t.exp() * (log_t - logits(x).log_softmax(1))).sum(1).mean() for x in (expected, pixels)
    )
    torch.testing.assert_close(terms["kl"], 5 / 6 * attacked_part + 1 / 6 * clean_part)


@pytest.mark.parametrize("epsilon", [0.5, 8, 200])
def test_the_attack_stays_near_the_image_and_among_pixels_and_raises_the_loss(
    epsilon: float,
) -> None:
    student = model(RESNET)
    pixels, _, logits = batch(32)
    pixels[:4], pixels[4:8] = 0, 255
    its = Rslad(method="rslad", epsilon=epsilon, step_size=epsilon / 4)
    found = attacked(student, pixels, logits[0], its)
    assert found.dtype == torch.float32 and not found.requires_grad
    assert float((found - pixels).abs().max()) <= epsilon * (1 + 1e-6)
    assert float(found.min()) >= 0 and float(found.max()) <= 255
    assert not torch.equal(found, pixels.float())
    student.eval()
    with torch.no_grad():
        before, after = (kl(student(x), logits[0], temperature=1.0) for x in (pixels, found))
    assert after > before


def test_learning_goes_through_the_outer_loss_alone() -> None:
    """The gradient is that of the loss on attacked images that are given."""
    pixels, labels, logits = batch()
    whole, alone = taught_by(RSLAD).train(), model(RESNET).train()
    torch.manual_seed(3)
    whole(pixels, labels, logits)["kl"].backward()
    torch.manual_seed(3)
    found = attacked(alone, pixels, logits[0], RSLAD)
    assert all(parameter.grad is None for parameter in alone.parameters())
    clean, other = alone(torch.cat([pixels, found])).split(8)
    loss = 5 / 6 * kl(other, logits[0], temperature=1.0)
    (loss + 1 / 6 * kl(clean, logits[0], temperature=1.0)).backward()
    for one, two in zip(whole.model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_attack_leaves_statistics_and_modes_alone(frozen: bool) -> None:
    student = model(DROPPING)
    objective = taught_by(RSLAD, student=student).train()
    norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
    if frozen:
        for norm in norms:
            norm.eval()
    before = deepcopy(student.state_dict())
    modes = [module.training for module in student.modules()]
    pixels, _, logits = batch()
    attacked(student, pixels, logits[0], RSLAD)
    assert same(before, weights(student))
    assert [module.training for module in student.modules()] == modes and any(modes)
    objective(*batch())
    counts = {int(norm.num_batches_tracked or 0) for norm in norms}
    assert counts == {0 if frozen else 1}, "one pass over all views updates them"


def test_every_term_is_shared_out_and_features_are_those_of_clean_images() -> None:
    """In eval mode, where views do not meet in batch norm."""
    pixels, labels, logits = batch()
    objective = taught_by(RSLAD, (KL1, LABELS, HINT)).eval()
    with torch.no_grad():
        torch.manual_seed(3)
        found = objective(pixels, labels, logits)
        torch.manual_seed(3)
        other = objective.model(attacked(objective.model, pixels, logits[0], RSLAD))
        clean = objective.model(pixels)
        plain = taught_by(None, (KL1, LABELS, HINT)).eval()(pixels, labels, logits)
    for name, loss in (("kl", 1.0), ("cross_entropy", 0.5)):
        one, two = (
            kl(z, logits[0], temperature=1.0) if name == "kl" else cross_entropy(z, labels)
            for z in (other, clean)
        )
        torch.testing.assert_close(found[name], loss * (5 / 6 * one + 1 / 6 * two))
    torch.testing.assert_close(found["hint"], plain["hint"])


def test_jensen_shannon_is_its_textbook_form() -> None:
    torch.manual_seed(0)
    logits = [3 * torch.randn(6, 5) for _ in range(3)]
    p = torch.stack(logits).softmax(2).double()
    mean = p.mean(0)
    entropy = [-(q * q.log()).sum(-1) for q in (mean, p)]
    expected = (entropy[0] - entropy[1].mean(0)).mean()
    torch.testing.assert_close(jensen_shannon(logits).double(), expected)
    assert jensen_shannon([logits[0]] * 3).abs() < 1e-6
    certain = 1e4 * torch.eye(3)
    apart = jensen_shannon([certain[[0]], certain[[1]], certain[[2]]])
    torch.testing.assert_close(apart, torch.tensor(3.0).log())


def test_mixes_are_taught_by_the_logits_of_their_view() -> None:
    pixels, labels, logits = batch()
    objective = taught_by(AUGMIX, (KL1, LABELS)).eval()
    three = torch.cat([pixels, pixels.flip(1), 255 - pixels])
    with torch.no_grad():
        found = objective(three, labels, logits)
        views = [objective.model(x) for x in three.split(8)]
    values = [kl(z, logits[0], temperature=1.0) for z in views]
    torch.testing.assert_close(found["kl"], sum(values, torch.zeros(())) / 3)
    torch.testing.assert_close(found["jensen_shannon"], 12 * jensen_shannon(views))
    assert sum(view_shares(AUGMIX)) == pytest.approx(1)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("changes", "stop"), [({}, 1), ({"ema": 0.9, "accumulate": 2}, 11)], ids=str
)
def test_a_run_that_was_stopped_ends_with_the_same_bits(changes: dict[str, Any], stop: int) -> None:
    """Before the phase under int8's rounding and in it: its steps are the last nine of 18."""
    training = Recipe(**TRAINING.model_dump() | changes)
    phase = Int8Phase(0.5, split(1)[0])

    def go(student: PixelsToLogits, key: str, **more: Any) -> None:
        run(taught_by(RSLAD, student=student), key, training, recorded=Fixed(), int8=phase, **more)

    undisturbed, again = model(DROPPING), model(DROPPING, seed=99)
    go(undisturbed, "a")
    with stopped_after(stop):
        go(model(DROPPING), "b", checkpoint_seconds=0)
    go(again, "b")
    assert same(weights(undisturbed), weights(again))


@pytest.mark.usefixtures("folder")
def test_a_graph_makes_the_same_updates_with_an_attack_in_it(
    captured: list[int],  # noqa: F811
) -> None:
    plain, replayed = model(DROPPING), model(DROPPING)
    run(taught_by(RSLAD, student=plain), "a", recorded=Fixed())
    graph = TRAINING.model_copy(update={"cuda_graph": True})
    run(taught_by(RSLAD, student=replayed), "b", graph, recorded=Fixed())
    assert captured == [15]
    assert same(weights(plain), weights(replayed))


@pytest.mark.usefixtures("folder")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_an_attack_in_a_graph_gives_the_same_bits() -> None:
    plain, one, two = model(DROPPING), model(DROPPING), model(DROPPING)
    training = Recipe(**TRAINING.model_dump() | {"optimizer": "adamw", "lr": 0.005})
    graph = training.model_copy(update={"cuda_graph": True})
    run(taught_by(RSLAD, student=plain), "a", training, recorded=Fixed())
    run(taught_by(RSLAD, student=one), "b", graph, recorded=Fixed())
    run(taught_by(RSLAD, student=two), "c", graph, recorded=Fixed())
    assert same(weights(one), weights(two))
    assert not same(weights(one), weights(model(DROPPING)))


@pytest.mark.usefixtures("folder")
def test_the_estimate_measures_steps_with_their_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves no trace: the run has the bits of one without an estimate."""
    plain, told = model(DROPPING), model(DROPPING)
    run(taught_by(RSLAD, student=plain), "a", recorded=Fixed())
    made, seen = list[int](), list[int]()

    def note(*arguments: Any) -> torch.Tensor:
        made.append(1)
        return attacked(*arguments)

    monkeypatch.setattr("pipeline.distill.objective.attacked", note)
    monkeypatch.setattr("pipeline.training.loop.WORTH_AN_ESTIMATE", 1)
    monkeypatch.setattr(
        "pipeline.training.loop.check_time", lambda *_, **__: seen.append(len(made))
    )
    run(taught_by(RSLAD, student=told), "b", recorded=Fixed())
    assert seen == [2] and len(made) == 2 + 18
    assert same(weights(plain), weights(told))


@pytest.mark.usefixtures("folder")
def test_under_rounding_the_attack_is_on_the_rounded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def note(student: PixelsToLogits, *arguments: Any) -> torch.Tensor:
        seen.append("forward" in student.network.__dict__)
        return attacked(student, *arguments)

    monkeypatch.setattr("pipeline.distill.objective.attacked", note)
    run(taught_by(RSLAD), "a", recorded=Fixed(), int8=Int8Phase(0.5, split(1)[0]))
    assert seen == [False] * 9 + [True] * 9


@pytest.mark.usefixtures("folder")
def test_unlabelled_images_are_attacked_as_all_others() -> None:
    """RSLAD needs no labels: those of some do not change what is learnt from the teacher."""
    pixels, labels, logits = batch()
    unknown = labels.clone()
    unknown[4:] = -1
    values = []
    for truth, share in ((labels, 1.0), (unknown, 0.5)):
        torch.manual_seed(3)
        values.append(taught_by(RSLAD, labelled_share=share).eval()(pixels, truth, logits)["kl"])
    assert torch.equal(*values)


def test_parts_of_a_batch_are_attacked_by_themselves() -> None:
    """The attack on an image does not depend on the others."""
    student, (pixels, _, logits) = model(RESNET).train(), batch()
    its = Rslad(method="rslad", steps=2)
    torch.manual_seed(3)
    whole = attacked(student, pixels, logits[0], its)
    torch.manual_seed(3)
    parts = [attacked(student, pixels[:4], logits[0, :4], its)]
    parts.append(attacked(student, pixels[4:], logits[0, 4:], its))
    close = (torch.cat(parts) - whole).abs() < 1e-3
    assert close.float().mean() > 0.99, "a sign may change where a slope is nearly 0"


def test_rslad_without_a_loss_on_logits_is_refused() -> None:
    with pytest.raises(PipelineError, match=r"RSLAD attacks .* \(found cross_entropy\)") as refused:
        taught_by(RSLAD, (LABELS,))
    assert refused.value.where == "distill.robust" and "name: kl" in str(refused.value.fix)
    taught_by(AUGMIX, (LABELS,))


@pytest.mark.parametrize(
    ("robust", "said"),
    [
        ({"method": "rslad", "epsilon": 0}, "robust.epsilon: input should be greater than 0"),
        ({"method": "rslad", "epsilon": 300}, "robust.epsilon: .* less than or equal to 255"),
        ({"method": "rslad", "steps": 0}, "robust.steps: .* greater than or equal to 1"),
        ({"method": "rslad", "step": 2}, "robust.step: unknown key; did you mean `steps`"),
        ({"method": "rslad", "step_size": -1}, "robust.step_size: input should be greater than 0"),
        ({"method": "augmix", "severity": 11}, "robust.severity: .* less than or equal to 10"),
        (
            {"method": "augmix", "epsilon": 8},
            "robust.epsilon: unknown key; known are method",
        ),
        ({"method": "rslat"}, "robust: there is no `method` 'rslat'; did you mean `rslad`"),
        ({"method": ["rslad"]}, "robust: there is no `method`"),
        ({"epsilon": 8}, "robust: expected null, or a mapping with `method`; known are rslad, aug"),
        (True, r"robust: expected null, .* \(found True\)"),
    ],
)
def test_what_is_no_method_is_told(robust: Any, said: str) -> None:
    tree = {"losses": [KL1.model_dump()], "training": {}, "robust": robust}
    with pytest.raises(ValidationError) as refused:
        Distill.model_validate(tree)
    with pytest.raises(PipelineError, match=said):
        raise invalid(refused.value, Distill, "params.yaml", "distill")


def test_a_classifier_alone_cannot_be_made_robust() -> None:
    tree = {"losses": [KL1.model_dump()], "training": {"freeze": "backbone"}}
    Distill.model_validate(tree)
    with pytest.raises(ValidationError, match=r"freeze: backbone.*remove one of them"):
        Distill.model_validate(tree | {"robust": {"method": "rslad"}})


def test_a_recorded_method_is_read_again() -> None:
    assert read_robust(RSLAD.model_dump()) == RSLAD
    assert "attacked by 3 steps of PGD, 4 of 255 each, within 8 of 255" in str(RSLAD)
    assert "2 mixes of every view at severity 3" in str(AUGMIX)


@pytest.mark.usefixtures("folder")
def test_the_last_epoch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Top-1 on clean val images does not show what is learnt."""
    falling = iter([(0.1, 0.9), (0.2, 0.8), (0.3, 0.7)])
    monkeypatch.setattr(loop, "evaluate_on_ranks", lambda *_: next(falling))
    made = Run("net", "a", 5, TRAINING, 3, 60.0, keep_last=True)
    objective = taught_by(RSLAD)
    fitted = fit(launch(TRAINING), objective, views(), split(2), made, Fixed())
    assert (fitted.best_epoch, fitted.val_top1) == (3, 0.7)
    assert Path("metrics/curves/net").is_dir()
    assert F.softmax(objective.model.eval()(batch()[0]), 1).isfinite().all()
