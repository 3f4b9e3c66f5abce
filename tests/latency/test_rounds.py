from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.backends.base.artifact import Artifact
from pipeline.cli.params import Params
from pipeline.latency.benchmark import reference_target, write_test_images
from pipeline.latency.conditions import Watch
from pipeline.latency.harness import FEWEST_ROUNDS, p90_limits
from pipeline.latency.records import REFERENCE, Conditions
from pipeline.latency.rounds import measure, ratio, turns
from pipeline.latency.workers import Target


def test_p90_has_limits_from_its_rounds(workspace: Params, tmp_path: Path) -> None:
    settings = workspace.benchmark.model_copy(update={"rounds": FEWEST_ROUNDS, "extra_rounds": 0})
    measured = measure([reference_target(tmp_path)], settings, seed=1)
    row = measured.rows[REFERENCE]
    assert row.latency_ms and row.p90_interval_ms == p90_limits(measured.raw[REFERENCE])
    low, high = row.p90_interval_ms or (0, 0)
    assert 0 < low <= row.latency_ms.p90 <= high


def orders_taken(*others: float, rounds: int, extra: int) -> list[int]:
    """Which order each round took, on a machine whose rounds are disturbed as `others` says."""
    seen: list[Conditions] = []
    taken = []
    for turn in turns(seen, rounds, extra):
        taken.append(turn)
        seen.append(Conditions(seconds=10.0, others=others[len(seen)]))
    return taken


def test_a_spoiled_round_is_repeated_in_its_own_order() -> None:
    assert orders_taken(0.0, 0.0, 0.0, rounds=3, extra=2) == [0, 1, 2]
    assert orders_taken(0.0, 0.9, 0.0, 0.0, rounds=3, extra=2) == [0, 1, 2, 1]
    assert orders_taken(0.9, 0.0, 0.9, 0.9, 0.0, 0.0, rounds=3, extra=3) == [0, 1, 2, 0, 2, 0]
    # nobody waits for a machine that never comes to rest
    assert orders_taken(*[0.9] * 5, rounds=3, extra=2) == [0, 1, 2, 0, 1]


def test_spoiled_rounds_are_repeated_whole_and_stay_paired(
    workspace: Params, tmp_path: Path, monkeypatch
) -> None:
    spoiled = [0.9, 0.0, 0.8, 0.7, 0.0]
    stop = Watch.stop
    taken = iter(spoiled)
    monkeypatch.setattr(
        Watch,
        "stop",
        lambda self: stop(self).model_copy(
            update={"seconds": 10.0, "others": next(taken), "stolen": None, "mhz": None}
        ),
    )
    targets = [reference_target(tmp_path)]
    model = Artifact("mnv4_small_050", "onnxruntime", "fp32").folder / "model.onnx"
    targets.append(Target("a", "onnxruntime", model, write_test_images(tmp_path)))
    settings = workspace.benchmark.model_copy(update={"rounds": 3, "extra_rounds": 2})
    measured = measure(targets, settings, seed=1)
    assert [one.others for one in measured.conditions] == spoiled
    # two rounds are clean, and the least spoiled makes up for the third
    assert [one.kept for one in measured.conditions] == [False, True, False, True, True]
    assert "70%" in str(measured.conditions[3].spoiled)
    for name in (REFERENCE, "a"):
        assert len(measured.rows[name].rounds_ms) == len(measured.raw[name]) == 3


def test_a_disturbed_round_does_not_move_the_ratio() -> None:
    def rounds(*milliseconds: int) -> list[np.ndarray]:
        return [np.full(5, value, dtype=np.int64) for value in milliseconds]

    # the machine is three times slower in the second round, and hiccups in the third
    estimate, (low, high) = ratio(rounds(20, 60, 900), rounds(10, 30, 10))
    assert estimate == 2.0 and low < 2.0 < high


def test_limits_of_a_ratio_are_as_narrow_as_rounds_agree() -> None:
    pace = np.random.default_rng(0).uniform(10, 30, 10)  # of the machine, which both share

    def logs(noise: float, seed: int = 1) -> np.ndarray:
        """Of the limits, over the true ratio."""
        own = 2 * pace * np.exp(np.random.default_rng(seed).normal(0, noise, 10))
        sides = ([np.array([round(1e6 * p)]) for p in side] for side in (own, pace))
        estimate, (low, high) = ratio(*sides)
        assert low <= estimate <= high
        return np.log(np.array([low, high]) / 2)

    np.testing.assert_allclose(logs(0.0), 0, atol=1e-6)
    np.testing.assert_allclose(logs(0.1), 10 * logs(0.01), atol=1e-4)
    held = [low < 0 < high for low, high in (logs(0.05, seed) for seed in range(100))]
    assert 90 <= sum(held) < 100
    np.testing.assert_array_equal(logs(0.05), logs(0.05))  # the bootstrap is seeded
