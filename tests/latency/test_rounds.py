from __future__ import annotations

from pathlib import Path

from pipeline.cli.params import Params
from pipeline.latency.benchmark import reference_target
from pipeline.latency.harness import FEWEST_ROUNDS, p90_limits
from pipeline.latency.records import REFERENCE, Conditions
from pipeline.latency.rounds import measure, turns


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
