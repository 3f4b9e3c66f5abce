"""The trials of a study as plain values, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from pipeline.search.decide import Bound, lower_bound
from pipeline.search.params import SearchParams
from pipeline.search.records import Probe
from pipeline.search.space import Choice

OUTCOME, REASON, PROBE, RUNGS, SECONDS = "outcome", "reason", "probe", "rungs", "seconds"
PLACE, CONFIRMS, SEED, STUDENT = "place", "confirms", "seed", "student"
"""Keys of a trial's user attributes."""

REJECTED, HALVED, DONE, FAILED, REPEATED = "rejected", "halved", "trained", "failed", "repeated"
"""Outcomes: broke a limit untrained; was worse than others; fully trained; ended in an error;
stands for the same point of the space as an earlier one."""


@dataclass(frozen=True)
class Seen:
    """One trial."""

    number: int
    choice: Choice
    outcome: str | None = None
    reason: str = ""
    probe: Probe | None = None
    rungs: tuple[tuple[int, float], ...] = ()
    """(epochs, accuracy on val) of each training."""
    seconds: float = 0.0
    confirms: int | None = None
    """The trial whose recipe this one repeats with another seed."""
    seed: int = 0
    student: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, trial: FrozenTrial) -> Seen:
        """From what Optuna keeps."""
        its = trial.user_attrs
        return cls(
            trial.number, dict(trial.params), its.get(OUTCOME), its.get(REASON, ""),
            Probe.model_validate(its[PROBE]) if PROBE in its else None,
            tuple((int(epochs), float(value)) for epochs, value in its.get(RUNGS, ())),
            its.get(SECONDS, 0.0), its.get(CONFIRMS), its.get(SEED, 0), its.get(STUDENT, {}),
        )  # fmt: skip

    @property
    def value(self) -> float:
        """The accuracy on val of a fully trained candidate."""
        return self.rungs[-1][1]

    @property
    def cost(self) -> float | None:
        """Its p50 against the reference, where that was measured."""
        return self.probe.ratio if self.probe else None


def queue_again(study: Study, trial: Trial | FrozenTrial) -> None:
    """Let the next worker go on where a trial was cut off, in the same folder."""
    kept = (PLACE, SEED, CONFIRMS, SECONDS)
    attributes = {name: trial.user_attrs[name] for name in kept if name in trial.user_attrs}
    study.enqueue_trial(trial.params, user_attrs=attributes)


@dataclass(frozen=True)
class Standing:
    """How a search stands."""

    candidates: tuple[Seen, ...]
    """Those that were drawn from the space, not those that repeat one with another seed."""
    bounds: dict[int, Bound]
    """By number of a fully trained candidate, of its accuracies over seeds."""
    seconds: float
    met_by: int | None
    """The candidate whose lower bound is above the target."""

    def trained(self) -> list[Seen]:
        """Fully trained candidates, the best first."""
        found = [seen for seen in self.candidates if seen.outcome == DONE]
        return sorted(found, key=lambda seen: -self.bounds[seen.number].mean)

    @property
    def best(self) -> Seen | None:
        """The fully trained candidate of the highest accuracy over its seeds."""
        return next(iter(self.trained()), None)

    @property
    def nearest(self) -> Seen | None:
        """The best of those with several seeds, if there are any: one seed may have been lucky."""
        proven = [seen for seen in self.trained() if self.bounds[seen.number].seeds > 1]
        return proven[0] if proven else self.best


def standing(trials: Sequence[FrozenTrial], search: SearchParams, images: int) -> Standing:
    """How a search stands after `trials`.

    Args:
        trials: all of the study.
        search: target and seeds.
        images: of val.
    """
    seen = [Seen.of(trial) for trial in trials]
    candidates = [
        one for one in seen if one.confirms is None and one.outcome not in (None, REPEATED)
    ]
    proofs = {one.number: [one.value] for one in candidates if one.outcome == DONE}
    for one in seen:
        if one.confirms in proofs and one.outcome == DONE:
            proofs[one.confirms].append(one.value)
    bounds = {number: lower_bound(values, images) for number, values in proofs.items()}
    met = [
        number
        for number, bound in bounds.items()
        if bound.seeds >= search.seeds and bound.lower >= search.target.accuracy
    ]
    return Standing(
        tuple(candidates),
        bounds,
        sum(one.seconds for one in seen),
        max(met, key=lambda number: bounds[number].lower, default=None),
    )
