"""The gate on where artifacts look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.attribution.records import (
    Agreement,
    AttributionRecord,
    Estimate,
    Explained,
    packed,
    record_file,
)
from pipeline.compile.evidence import Evidence
from pipeline.gate.attribution import MEASURE, Fall, compare_maps, decide
from pipeline.gate.params import Gate
from pipeline.gate.snapshot import Recorded, Snapshot, folder_files, save, take
from pipeline.gate.verdict import Finding, Note, Outcome
from tests.conftest import EXECUTION

KEY, STUDENT = "pupil/tflite/int8", "pupil"
DIGESTS = {"model.tflite": "a" * 64}
RNG = np.random.default_rng(4)
GOOD = np.clip(RNG.normal(0.95, 0.03, 300), -1, 1)


def snapshot(values: NDArray[np.float64] | None, **changes: object) -> Snapshot:
    """One side, with the correlations of these images; none: without a record."""
    evidence = Evidence.model_construct(digests=DIGESTS, execution=EXECUTION)
    record = None if values is None else explained(values).model_copy(update=changes)
    return Snapshot(
        name="side",
        rows={KEY: Recorded(None, evidence, None)},
        benchmark=None,
        attribution={} if record is None else {STUDENT: record},
        robustness={},
        broken={},
        older=frozenset(),
    )


def explained(values: NDArray[np.float64]) -> AttributionRecord:
    known = values[~np.isnan(values)]
    mean = Estimate(mean=float(known.mean()), low=None, high=None) if len(known) else None
    occlusion = Agreement(
        images=len(known), undefined=len(values) - len(known), pearson=mean, ssim=mean, iou=mean,
        same_answers=len(known), other_reason=0,
    )  # fmt: skip
    its = Explained(
        name=KEY, kind="artifact", status="computed", digests=DIGESTS, occlusion=occlusion,
        by_image=packed(values),
    )  # fmt: skip
    return AttributionRecord(
        images=len(values), minutes=1, int8_pearson=None, int8_iou=None, random_pearson=None,
        settings=("grid 8",), drawn=("test", "images"), networks=(its,), sanity=(), digests=(),
    )  # fmt: skip


def judged(before: NDArray[np.float64], after: NDArray[np.float64]) -> Finding:
    (fall,) = compare_maps(KEY, snapshot(before), snapshot(after), True)
    assert isinstance(fall, Fall)
    (finding,) = decide([fall], 3, Gate())
    return finding


def test_int8_that_looks_elsewhere_is_a_regression() -> None:
    finding = judged(GOOD, GOOD - 0.05)
    assert finding.outcome is Outcome.REGRESSION and finding.measure == MEASURE
    assert finding.baseline == pytest.approx(GOOD.mean(), abs=1e-3)
    assert finding.candidate == pytest.approx(GOOD.mean() - 0.05, abs=1e-3)


def test_a_fall_below_the_limit_passes_however_certain_and_so_does_a_rise() -> None:
    assert judged(GOOD, GOOD - 0.015).outcome is Outcome.PASSED
    assert judged(GOOD - 0.3, GOOD).outcome is Outcome.PASSED
    assert judged(GOOD, GOOD).outcome is Outcome.PASSED


def test_a_large_fall_that_may_be_chance_is_inconclusive() -> None:
    few = GOOD[:6]
    assert judged(few, few - np.array([1.5, -0.6, 0.2, 0.0, 0.4, -0.4])).outcome is (
        Outcome.INCONCLUSIVE
    )


def test_images_whose_maps_are_undefined_on_a_side_do_not_count() -> None:
    before, after = GOOD.copy(), GOOD.copy()
    before[:50], after[40:90] = np.nan, np.nan
    (fall,) = compare_maps(KEY, snapshot(before), snapshot(after), True)
    assert isinstance(fall, Fall) and len(fall.baseline) == len(GOOD) - 90
    (finding,) = compare_maps(KEY, snapshot(np.full(3, np.nan)), snapshot(GOOD[:3]), True)
    assert isinstance(finding, Finding) and finding.outcome is Outcome.INCONCLUSIVE


def test_no_record_on_either_side_is_no_row() -> None:
    assert compare_maps(KEY, snapshot(None), snapshot(None), False) == []


def outcome(baseline: Snapshot, candidate: Snapshot, enabled: bool = True) -> Outcome:
    (finding,) = compare_maps(KEY, baseline, candidate, enabled)
    assert isinstance(finding, Finding)
    return finding.outcome


def test_a_record_of_one_side_alone() -> None:
    assert outcome(snapshot(None), snapshot(GOOD)) is Outcome.PASSED
    assert outcome(snapshot(GOOD), snapshot(None)) is Outcome.INVALID
    (note,) = compare_maps(KEY, snapshot(GOOD), snapshot(None), False)
    assert isinstance(note, Note)


def test_a_record_that_was_left_over_from_other_files_counts_for_nothing() -> None:
    old = explained(GOOD)
    stale = old.networks[0].model_copy(update={"digests": {"model.tflite": "b" * 64}})
    left_over = snapshot(GOOD, networks=(stale,))
    assert outcome(left_over, snapshot(GOOD)) is Outcome.PASSED
    assert outcome(snapshot(GOOD), left_over) is Outcome.INVALID
    assert compare_maps(KEY, left_over, snapshot(None), False) == []


@pytest.mark.parametrize("field", ["settings", "drawn"])
def test_maps_of_other_images_or_settings_are_not_compared(field: str) -> None:
    other = snapshot(GOOD, **{field: ("other", "images")})
    assert outcome(snapshot(GOOD), other) is Outcome.INCONCLUSIVE


def test_an_artifact_that_does_not_run_here_is_inconclusive() -> None:
    absent = Explained(
        name=KEY, kind="artifact", status="not_computed", reason="no GPU", digests=DIGESTS
    )
    assert outcome(snapshot(GOOD), snapshot(GOOD, networks=(absent,))) is Outcome.INCONCLUSIVE


def test_false_alarms_keep_their_level() -> None:
    """200 times the same model on the same images, with noise from run to run."""
    alarms = 0
    for _ in range(200):
        before, after = (GOOD + RNG.normal(0, 0.3, len(GOOD)) for _ in "ab")
        finding = decide([Fall(KEY, before, after)], 1, Gate(false_alarms=0.05))[0]
        alarms += finding.outcome is Outcome.REGRESSION
    assert alarms <= 18  # 10 expected; more than 18 have a probability of 0.5%


def test_a_snapshot_holds_the_records_and_a_saved_file_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    explained(GOOD).write(record_file(STUDENT))
    files = folder_files(Path())
    assert take("here", files).attribution[STUDENT] == explained(GOOD)
    save(files, tmp_path / "saved.json")
    assert "pupil.json" in (tmp_path / "saved.json").read_text()
    files[str(record_file(STUDENT))] = b"{}"
    broken = take("here", files)
    assert broken.attribution[STUDENT] is None and str(record_file(STUDENT)) in broken.broken
