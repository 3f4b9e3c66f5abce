"""The accuracy part of `benchmarks.gate`: simulated answers in the gate's own records.

Of all images, (share + loss) / 2 are lost and (share - loss) / 2 are won, so that top-1 falls by
`loss` on average. Every trial draws new answers, so trials are independent.
"""

from __future__ import annotations

import base64
import itertools
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rates import rate
from pipeline.accuracy.paired import mcnemar_power, most_lost
from pipeline.backends.base.records import ExecutionReport
from pipeline.compile.evidence import Evidence
from pipeline.compile.records import CompiledMetrics
from pipeline.data.recall import Recall
from pipeline.gate.accuracy import Flips, compare_answers, decide
from pipeline.gate.params import Gate
from pipeline.gate.snapshot import Recorded
from pipeline.gate.verdict import Outcome

IMAGES, TOP1 = 10_000, 0.92
SHARES, LOSSES = (0.015, 0.03), (0.0, 0.005)
CLASSES = (10, 1000), (1000, 10), (1000, 50)
"""Classes, and test images of each."""
KEY = "student/backend/precision"

Answers = NDArray[np.bool_]


def judge_answers(
    trials: int, tests: tuple[int, ...], gate: Gate, seed: int
) -> list[dict[str, Any]]:
    """A row per share of flips, loss and number of tests in a gate run."""
    rng = np.random.default_rng(seed)
    rows = []
    for share in SHARES:
        for loss in LOSSES:
            flips = [_trial(share, loss, rng) for _ in range(trials)]
            for count in tests:
                outcomes = Counter(_outcome(one, count, gate) for one in flips)
                level = gate.false_alarms / count
                rows.append(
                    {
                        "flips": share,
                        "loss": loss,
                        "tests": count,
                        "outcomes": {outcome: outcomes[outcome] for outcome in Outcome},
                        "found": rate(outcomes[Outcome.REGRESSION], trials),
                        "passed": rate(outcomes[Outcome.PASSED], trials),
                        "predicted": mcnemar_power(IMAGES, round(IMAGES * share), loss, level)
                        if loss
                        else None,
                    }
                )
    return rows


def judge_classes(
    trials: int, tests: tuple[int, ...], gate: Gate, seed: int
) -> list[dict[str, Any]]:
    """A row per number of classes and their images, share of flips, collapse and tests.

    Answers flip either way alike; in a collapse one class also loses half of its right answers.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for (classes, images), share, collapse in itertools.product(CLASSES, SHARES, (False, True)):
        chances = [_chance(classes, images, share, collapse, gate, rng) for _ in range(trials)]
        for count in tests:
            found = sum(chance <= gate.false_alarms / count for chance in chances)
            rows.append(
                {
                    "classes": classes,
                    "images": images,
                    "flips": share,
                    "collapse": collapse,
                    "tests": count,
                    "found": rate(found, trials),
                }
            )
    return rows


def _chance(
    classes: int, images: int, share: float, collapse: bool, gate: Gate, rng: np.random.Generator
) -> float:
    flips = rng.binomial(images, share, classes)
    lost = rng.binomial(flips, 0.5)
    if collapse:
        lost[0] += images // 2
        flips[0] += images // 2
    return most_lost(lost, flips - lost, np.full(classes, images), gate.max_recall_loss)[1]


def _trial(share: float, loss: float, rng: np.random.Generator) -> Flips:
    before = rng.random(IMAGES) < TOP1
    lost, won = (share + loss) / 2 / TOP1, (share - loss) / 2 / (1 - TOP1)
    after = before ^ (rng.random(IMAGES) < np.where(before, lost, won))
    found = compare_answers(KEY, _recorded(before), _recorded(after))
    assert isinstance(found, Flips)
    return found


def _outcome(flips: Flips, tests: int, gate: Gate) -> Outcome:
    """The gate's decision; of several `tests`, by the strictest step of Holm's procedure."""
    (finding, _), _ = decide([flips], tests, gate)
    return finding.outcome


def _recorded(correct: Answers) -> Recorded:
    top1 = float(correct.mean())
    metrics = CompiledMetrics(
        top1=top1, balanced_accuracy=top1,
        recall=Recall(images=(len(correct),), right=(int(correct.sum()),)), top1_drop=0.0,
        agreement=1.0, lost=0, won=0, max_logit_error=0.0, mean_logit_error=0.0, snr_db=None,
        images=len(correct), size_bytes=1, int8_mac_share=1.0, evaluated_with="simulated",
    )  # fmt: skip
    evidence = Evidence(
        test_digest="simulated",
        images=len(correct),
        by_class={"all": len(correct)},
        correct=base64.b64encode(np.packbits(correct).tobytes()).decode(),
        execution=ExecutionReport(
            macs=1, in_float=(), per_channel=None, partitions=None,
            input_type="uint8", output_type="float32",
        ),
        digests={},
    )  # fmt: skip
    return Recorded(metrics, evidence, None)
