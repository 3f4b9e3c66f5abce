"""What a student minimises: a weighted sum, from params alone, of any registered losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.errors import PipelineError
from pipeline.distill.losses.logits import kl
from pipeline.distill.objective import Distillation
from pipeline.distill.params import LossTerm
from tests.distill.conftest import LOSSES, TERMS, distillation, teachers
from tests.training.conftest import RESNET, TINY, model, run, same, split, weights


def batch(n: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = split(1)
    return torch.from_numpy(images[:n]), torch.from_numpy(labels[:n])


def term(name: str, **changes: Any) -> LossTerm:
    taps = {"levels": ("middle", "late"), "labels": (), "logits": ()}
    given = {"name": name, "weight": 1.0, "taps": taps.get(LOSSES[name].target, ("late",))}
    return LossTerm.model_validate(given | changes)


def value(objective: Distillation, *arguments: Any, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return sum(objective.eval()(*batch(), *arguments, **more).values(), torch.zeros(()))


LABELS = LossTerm(name="cross_entropy", weight=0.0)


@pytest.mark.parametrize("name", LOSSES)
def test_every_registered_loss_can_be_trained_with_from_params_alone(name: str) -> None:
    objective = distillation((term(name), LABELS)).train()
    terms = objective(*batch())
    assert name in terms
    terms[name].backward()
    gradients = [p.grad for p in objective.model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients)


def test_the_objective_is_the_weighted_sum_of_its_terms() -> None:
    found = distillation().eval()(*batch())
    assert list(found) == [term.name for term in TERMS]
    doubled = tuple(t.model_copy(update={"weight": 2 * t.weight}) for t in TERMS)
    for name, tensor in distillation(doubled).eval()(*batch()).items():
        torch.testing.assert_close(tensor, 2 * found[name])


def test_two_terms_of_one_loss_are_told_apart() -> None:
    one, other = term("kl", options={"temperature": 1.0}), term("kl", options={"temperature": 8.0})
    found = distillation((one, other)).eval()(*batch())
    assert list(found) == ["kl", "kl_2"] and found["kl"] != found["kl_2"]


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", (1, 1, 1)), ("warmup", (0, 1, 1)), ("decay", (1, 1, 0))]
)
def test_a_weight_follows_its_schedule(schedule: str, expected: tuple[float, ...]) -> None:
    plain = value(distillation((term("kl"),)))
    objective = distillation((term("kl", schedule=schedule),))
    for progress, factor in zip((0.0, 0.5, 1.0), expected, strict=True):
        torch.testing.assert_close(value(objective, None, progress), factor * plain)


def test_recorded_logits_stand_in_for_the_teacher() -> None:
    objective = distillation(TERMS[:2])
    with torch.no_grad():
        recorded = objective._teachers["resnet"](batch()[0])[None]
    online = value(objective)
    torch.testing.assert_close(value(objective, recorded), online)
    pixels = torch.from_numpy(split(1)[0][:1])
    without = Distillation(model(), {}, TERMS[:2], TINY.taps, teachers(), pixels)
    torch.testing.assert_close(value(without, recorded), online)


@pytest.mark.parametrize("how", ["mean", "best"])
def test_several_teachers_teach_as_one(how: str) -> None:
    weights = {"a": 3.0} if how == "mean" else {}
    settings = teachers("a", "b", combine=how, weights=weights)
    objective = distillation((term("kl"),), settings=settings)
    pixels, labels = batch()
    with torch.no_grad():
        student, a, b = (m.eval()(pixels) for m in (objective.model, *objective._teachers.values()))
    taught = (3 * a + b) / 4
    if how == "best":
        rows = np.arange(len(labels))
        right = [torch.log_softmax(one, 1)[rows, labels] for one in (a, b)]
        assert (right[0] > right[1]).any() and (right[1] > right[0]).any()
        taught = torch.where((right[0] >= right[1])[:, None], a, b)
    torch.testing.assert_close(value(objective), kl(student, taught))


def test_a_feature_loss_compares_with_the_teacher_that_it_names() -> None:
    settings = teachers("a", "b")
    values = [
        value(distillation((term("attention_transfer", teacher=name), LABELS), settings=settings))
        for name in (None, "a", "b")
    ]
    assert values[0] == values[1] != values[2]


def test_labels_may_be_the_probabilities_of_mixed_images() -> None:
    pixels, labels = batch()
    onehot = torch.nn.functional.one_hot(labels, 2).float()
    objective = distillation().eval()
    with torch.no_grad():
        hard, soft = objective(pixels, labels), objective(pixels, onehot)
        mixed = objective(pixels, 0.5 * onehot + 0.25)
    for name in hard:
        torch.testing.assert_close(hard[name], soft[name])
    assert mixed["cross_entropy"] != hard["cross_entropy"]


@pytest.mark.parametrize(
    ("student_taps", "said"),
    [
        ({"late": "blocks.33"}, r"no module `blocks\.33`; near are blocks\.3"),
        ({"late": "classifier"}, "a feature map is"),
        ({"late": "blocks.3.0.bn1.drop"}, "changes its output in place"),
        ({"early": "blocks.3"}, "the student has no tap `late`; it has early"),
    ],
)
def test_a_wrong_tap_fails_before_training(student_taps: dict[str, str], said: str) -> None:
    pixels = torch.from_numpy(split(1)[0][:1])
    known = {"resnet": model(RESNET)}
    terms = (term("hint"), LABELS)
    with pytest.raises(PipelineError, match=said):
        Distillation(model(), known, terms, student_taps, teachers(), pixels)


def test_attention_over_a_single_position_is_refused() -> None:
    """There its map is always 1: the loss would be zero and nobody would notice."""
    pixels, terms = torch.from_numpy(split(1)[0][:1]), (term("attention_transfer"), LABELS)
    known, taps = {"resnet": model(RESNET)}, {"late": "global_pool.pool"}
    with pytest.raises(PipelineError, match=r"has one position: \d+ x 1 x 1 in the student"):
        Distillation(model(), known, terms, taps, teachers(), pixels)


@pytest.mark.parametrize("name", ["rkd", "similarity_preserving", "dist"])
def test_losses_that_compare_samples_are_refused_where_batches_are_computed_in_parts(
    name: str,
) -> None:
    pixels, known = torch.from_numpy(split(1)[0][:1]), {"resnet": model(RESNET)}
    terms = (term(name), LABELS)
    with pytest.raises(PipelineError, match=rf"`{name}` compares the samples .*`accumulate`"):
        Distillation(model(), known, terms, TINY.taps, teachers(), pixels, accumulate=2)
    Distillation(model(), known, (LABELS,), TINY.taps, teachers(), pixels, accumulate=2)


def test_losses_that_leave_the_classifier_untrained_are_refused() -> None:
    with pytest.raises(PipelineError, match="no term trains the classifier"):
        distillation((term("hint"), term("rkd")))


@pytest.mark.usefixtures("folder")
def test_adapters_train_with_the_student_and_the_teacher_never_does() -> None:
    student = model()
    objective = distillation(student=student)
    teacher = objective._teachers["resnet"]
    before, start = weights(teacher), weights(student)
    adapters = {name: tensor.clone() for name, tensor in objective.adapters.state_dict().items()}
    run(objective, "d")
    assert same(before, weights(teacher)) and not teacher.training
    assert not same(start, weights(student))
    trained = {name for name, _ in objective.adapters.named_parameters()}
    now = objective.adapters.state_dict()
    assert trained and not any(torch.equal(adapters[name], now[name]) for name in trained)
    assert not any("adapter" in name for name in student.state_dict())


@pytest.mark.usefixtures("folder")
def test_every_term_has_a_curve_of_its_own() -> None:
    run(distillation(), "d", epochs=2)
    series = Path("metrics/curves/net/plots/metrics")
    for term in ("kl", "cross_entropy", "hint", "attention_transfer", "review"):
        assert len((series / f"loss_{term}.tsv").read_text().splitlines()) == 3
