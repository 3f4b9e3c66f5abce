"""The gate on robustness: nothing where it was never measured, and paired tests where it was."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.backends.base.artifact import Artifact
from pipeline.compile.evidence import Evidence
from pipeline.gate.command import save_records
from pipeline.robustness.corruptions import CORRUPTIONS
from pipeline.robustness.records import (
    FGSM,
    PGD,
    STUDENT,
    ArtifactRow,
    Limited,
    Measured,
    Protocol,
    RobustnessRecord,
    packed,
    record_file,
)
from tests.gate.test_gate import (
    FLOAT,
    GPU,
    INT8,
    Gate,
    answer,
    commit,
    found,
    gate,
    only,
    project,
    set_group,
)
from tests.gate.test_gate import STUDENT as NAME

__all__ = ["gate", "project"]

IMAGES, SETTINGS = 500, 3 * len(CORRUPTIONS)


def measured(lost: int = 0, each: int = 12, under_pgd: int = 0) -> Measured:
    """Right in 18 of 24 answers to each image, and under PGD for half of them, give or take.

    Args:
        lost: images of which `each` more answers are wrong.
        each: see `lost`.
        under_pgd: images that PGD changes as well.
    """
    right = np.full(IMAGES, 18)
    right[:lost] -= each
    withstood = np.arange(IMAGES) >= 250 + under_pgd
    accuracy = right.mean() / SETTINGS
    return Measured(
        clean=0.9,
        corrupted=dict.fromkeys(CORRUPTIONS, (accuracy,) * 3),
        mean_corrupted=Limited(value=accuracy),
        mce={STUDENT: Limited(value=1.0)},
        attacked={FGSM: 0.6, PGD: withstood.mean()},
        right=packed(right),
        withstood=packed(withstood),
    )


def record(int8: Measured | None = None, reason: str | None = None, **changes: object) -> None:
    """Write the record of the student; without `int8`, that artifact was not measured."""
    rows = {}
    for key, its in ((FLOAT, measured()), (INT8, int8), (GPU, None)):
        evidence = Evidence.read(Artifact.parse(key).evidence)
        status = "measured" if its else "not_measured"
        rows[key] = ArtifactRow(
            status=status, reason=reason, digests=evidence.digests, measured=its
        )
    protocol = Protocol(
        seed=17, strengths=(1, 3, 5), corruptions=tuple(CORRUPTIONS), epsilon=8, steps=20,
        step_size=2, restarts=1,
    )  # fmt: skip
    RobustnessRecord(
        test_digest="1" * 64, images=IMAGES, of_images=2000, protocol=protocol, versions={},
        unrounded={FGSM: 0.6, PGD: 0.5}, student=measured(), teachers={}, artifacts=rows,
    ).model_copy(update=changes).write(record_file(NAME))  # fmt: skip


def measures(verdict: dict, key: str) -> set[str]:
    return {f["measure"] for f in verdict["findings"] if f["key"] == key}


@pytest.fixture
def robust(gate: Gate) -> Gate:
    """The gate, with a baseline that has robustness."""
    record(measured())
    commit()
    return gate


def test_without_robustness_there_is_no_row_and_new_figures_are_a_note(gate: Gate) -> None:
    assert not measures(gate(), INT8) & {"corrupted", PGD}
    record(measured())
    verdict = gate()
    assert verdict["outcome"] == "passed" and not measures(verdict, INT8) & {"corrupted", PGD}
    noted = [note["key"] for note in verdict["notes"] if "robustness" in note["text"]]
    assert noted == [FLOAT, INT8]


def test_equal_figures_pass_by_both_measures(robust: Gate) -> None:
    verdict = robust()
    assert verdict["outcome"] == "passed"
    assert measures(verdict, INT8) >= {"corrupted", PGD}
    assert not measures(verdict, GPU) & {"corrupted", PGD}


def test_a_loss_beyond_chance_and_the_limit_is_a_regression(robust: Gate) -> None:
    record(measured(lost=60))
    finding = only(robust(), "regression")
    assert (finding["key"], finding["measure"]) == (INT8, "corrupted")
    assert finding["baseline"] - finding["candidate"] == pytest.approx(60 * 12 / 500 / SETTINGS)
    assert "60 of 500 images answered worse, 0 better" in finding["detail"]
    assert robust()["exit_code"] == 1
    set_group("gate", max_corruption_loss=0.1)
    assert robust()["outcome"] == "passed"


def test_a_loss_under_pgd_is_a_regression_of_its_own(robust: Gate) -> None:
    record(measured(under_pgd=30))
    finding = only(robust(), "regression")
    assert (finding["key"], finding["measure"]) == (INT8, PGD)
    assert (finding["baseline"], finding["candidate"]) == (0.5, 0.44)


def test_a_loss_that_a_few_images_explain_is_inconclusive(robust: Gate) -> None:
    """Eight images cannot show a loss beyond chance, however many answers to them are lost."""
    record(measured(lost=8, each=18))
    set_group("gate", max_corruption_loss=0.005)
    assert only(robust(), "inconclusive")["measure"] == "corrupted"


def test_gains_and_small_losses_pass(robust: Gate) -> None:
    record(measured(lost=100, each=-3))
    assert robust()["outcome"] == "passed"
    record(measured(lost=100, each=1))
    assert robust()["outcome"] == "passed"


def test_figures_that_are_lost_are_a_regression(robust: Gate) -> None:
    record_file(NAME).unlink()
    verdict = robust()
    lost = [(key, measure) for key in (FLOAT, INT8) for measure in ("corrupted", PGD)]
    assert sorted(found(verdict, "regression")) == sorted(lost)
    (one, *_) = [f for f in verdict["findings"] if f["outcome"] == "regression"]
    assert one["command"] == f"dvc repro robustness@{NAME}" and "is missing" in one["detail"]
    record(None, reason="its runtime is not installed")
    verdict = robust()
    assert found(verdict, "regression") == [(INT8, "corrupted"), (INT8, PGD)]
    assert "not measured now: its runtime" in next(
        f["detail"] for f in verdict["findings"] if f["outcome"] == "regression"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test_digest": "2" * 64}, "on other images"),
        ({"images": IMAGES}, None),
        ({"protocol": "epsilon"}, "in another way than in the baseline: epsilon"),
        ({"of_images": 9000}, None),
    ],
)
def test_figures_of_another_protocol_are_invalid(
    robust: Gate, change: dict[str, object], said: str | None
) -> None:
    record(measured())
    if "protocol" in change:
        its = RobustnessRecord.read(record_file(NAME)).protocol
        change = {"protocol": its.model_copy(update={"epsilon": 4.0})}
    record(measured(), **change)
    verdict = robust()
    assert verdict["outcome"] == ("invalid" if said else "passed")
    details = [f["detail"] for f in verdict["findings"] if f["outcome"] == "invalid"]
    assert len(details) == (4 if said else 0)
    assert said is None or all(said in detail for detail in details)


def test_figures_of_other_files_than_are_compiled_now_are_invalid(robust: Gate) -> None:
    answer(INT8, digest="b" * 64)
    verdict = robust()
    assert found(verdict, "invalid") == [(INT8, "corrupted"), (INT8, PGD)]


def test_figures_and_answers_that_contradict_each_other_are_invalid(robust: Gate) -> None:
    odd = measured().model_copy(update={"mean_corrupted": Limited(value=0.9)})
    record(odd)
    assert "contradict" in only(robust(), "invalid")["detail"]


def test_a_damaged_record_is_one_finding(robust: Gate) -> None:
    record_file(NAME).write_text("[{}]")
    verdict = robust()
    assert [f["measure"] for f in verdict["findings"] if f["outcome"] == "invalid"] == ["record"]
    assert found(verdict, "regression") == []


def test_a_saved_baseline_keeps_robustness(robust: Gate) -> None:
    save_records(Path("saved.json"))
    record(measured(lost=60))
    finding = only(robust("--baseline", "saved.json"), "regression")
    assert finding["measure"] == "corrupted" and math.isfinite(finding["candidate"])
