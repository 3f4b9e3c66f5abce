"""Agreement, the verdict of the sanity check, and the choice of examples."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.attribution.examples import choose
from pipeline.attribution.explain import separation
from pipeline.attribution.records import Agreement, Estimate, Explained, packed
from pipeline.core.errors import PipelineError

RNG = np.random.default_rng(8)


def test_the_same_answer_for_another_reason_is_counted() -> None:
    own = RNG.normal(size=(6, 4, 4))
    its = own.copy()
    its[0], its[1], its[2] = -own[0], -own[1], 0
    same = np.array([True, False, True, True, True, True])
    found = Agreement.of(its, own, same, 0.5)
    assert (found.images, found.undefined) == (5, 1)
    assert (found.same_answers, found.other_reason) == (4, 1)
    assert found.pearson and found.pearson.mean == pytest.approx((3 - 2) / 5)


def test_maps_that_are_all_constant_have_no_figures() -> None:
    found = Agreement.of(np.zeros((3, 4, 4)), RNG.normal(size=(3, 4, 4)), np.ones(3, bool), 0.5)
    assert (found.images, found.pearson, found.ssim, found.iou) == (0, None, None, None)
    assert found.same_answers == found.other_reason == 0


def agreement(low: float, high: float) -> Agreement:
    its = Estimate(mean=(low + high) / 2, low=low, high=high)
    return Agreement(
        images=9, undefined=0, pearson=its, ssim=its, iou=its, same_answers=9, other_reason=0
    )


def test_a_network_is_separated_where_no_interval_of_a_random_student_reaches_its_own() -> None:
    random = [agreement(-0.2, 0.1), agreement(0.0, 0.3)]
    networks = {
        "far": agreement(0.8, 0.9), "near": agreement(0.29, 0.9), "not compared": None,
        "undefined": agreement(0, 0).model_copy(update={"pearson": None}),
    }  # fmt: skip
    found = separation("occlusion", random, networks)
    assert found.separated == ("far",) and found.mixed_up == ("near", "undefined")


def test_a_random_student_without_any_map_agrees_with_nothing() -> None:
    blind = agreement(0, 0).model_copy(update={"pearson": None})
    assert separation("occlusion", [blind], {"a": agreement(0.1, 0.2)}).separated == ("a",)


def test_examples_are_of_every_kind_and_shown_once() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    student = np.array([0, 0, 1, 1, 1, 1, 2, 0])
    int8 = np.array([student, student])
    int8[1, 0], int8[0, 2] = 2, 0
    correlations = np.full((2, 8), 0.9)
    correlations[0, 3], correlations[1, 0], correlations[0, 4] = 0.1, -0.5, np.nan
    found = choose(student, labels, int8, correlations, 0.5, 2)
    assert found == [
        ("flipped", 0), ("flipped", 2), ("other reason", 3), ("wrong", 7), ("right", 1),
        ("right", 4),
    ]  # fmt: skip
    assert choose(student, labels, int8[:0], correlations[:0], 0.5, 1) == [
        ("wrong", 2),
        ("right", 0),
    ]


def test_correlations_survive_their_packing_and_damage_is_noticed() -> None:
    values = np.array([0.99, -1.0, np.nan, 0.5])
    its = Explained(name="a/b/c", kind="artifact", status="computed", by_image=packed(values))
    assert its.correlations() == pytest.approx(values, abs=1e-3, nan_ok=True)
    text = its.to_json().encode()
    with pytest.raises(PipelineError, match="not a Explained record"):
        Explained.parse(text.replace(b'"by_image": "', b'"by_image": "!'), "file")
