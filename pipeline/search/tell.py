"""What a person reads of a search in the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from pipeline.search import trials as key
from pipeline.search.decide import LEVEL
from pipeline.search.params import SearchParams, Target
from pipeline.search.trials import Seen, Standing


def point(seen: Seen) -> str:
    """A point of the space in a few words."""
    words = []
    for name, value in seen.choice.items():
        shown = f"{value:.3g}" if isinstance(value, float) else str(value)
        words.append(shown if name == "student" else f"{name} {shown}")
    return ", ".join(words)


def costs(seen: Seen) -> str:
    """What a candidate costs, as far as it was measured."""
    probe = seen.probe
    if probe is None or probe.kb is None:
        return ""
    parts = [f"{probe.kb:,.0f} kB"]
    if probe.ratio is not None:
        parts.insert(0, f"{probe.p50_ms:.3f} ms, {probe.ratio:.2f} x reference")
    return ", ".join(parts)


def line(seen: Seen, target: Target) -> str:
    """A trial when it has ended."""
    name = f"#{seen.number} {point(seen)}"
    took = f" ({seen.seconds:,.0f} s)"
    if seen.confirms is not None and seen.outcome == key.DONE:
        return f"#{seen.number} #{seen.confirms} again, seed {seen.seed}: {seen.value:.4f}{took}"
    if seen.outcome == key.DONE:
        text = f"{target.metric} {seen.value:.4f} on val, {costs(seen)}"
    elif seen.outcome == key.HALVED:
        text = f"{seen.reason}, behind others"
    else:
        text = f"{seen.outcome}: {seen.reason}"
    return f"{name}: {text}{took}"


def progress(standing: Standing, search: SearchParams) -> str:
    """The best so far against the target, and what is left of the budget."""
    best, budget = standing.best, search.budget
    left = f"{max(0.0, 60 * budget.hours - standing.seconds / 60):,.0f} min"
    if budget.trials is not None:
        left += f" or {max(0, budget.trials - len(standing.candidates))} candidates"
    if best is None:
        return f"none fully trained so far; {left} left"
    bound = standing.bounds[best.number]
    return (
        f"best so far #{best.number}: {bound.mean:.4f}, at {LEVEL:.0%} at least {bound.lower:.4f}, "
        f"of {search.target.accuracy:.4f}; {left} left"
    )


def counts(standing: Standing) -> str:
    """How many candidates there were, and what became of them."""
    found = Counter(seen.outcome for seen in standing.candidates)
    order = (key.REJECTED, key.HALVED, key.DONE, key.FAILED)
    parts = [f"{found[outcome]} {outcome}" for outcome in order if found[outcome]]
    told = f": {', '.join(parts)}" if parts else ""
    return f"{len(standing.candidates)} candidates{told}"


def verdict(standing: Standing, search: SearchParams) -> str:
    """Whether the target is met, and by whom; else what stands in the way, and who is nearest."""
    target = search.target
    best = standing.nearest
    if standing.met_by is not None:
        best = next(seen for seen in standing.candidates if seen.number == standing.met_by)
    text = f"{counts(standing)}, in {standing.seconds / 60:,.0f} minutes of work.\n"
    if best is None:
        return text + f"Not met: none was fully trained. {_obstacles(standing.candidates)}"
    bound = standing.bounds[best.number]
    reached = (
        f"#{best.number} ({point(best)}) has {target.metric} {bound.mean:.4f} on val, mean of "
        f"{bound.seeds} seed(s), and at {LEVEL:.0%} at least {bound.lower:.4f}; {costs(best)}"
    )
    if standing.met_by is not None:
        return text + f"Met: {reached}. The target is {target.accuracy:.4f}."
    why = (
        "no candidate that keeps the limits reaches it"
        if bound.mean < target.accuracy
        else "the best is above it, but not surely: val or the seeds are too few"
    )
    return (
        f"{text}Not met: the target is {target.accuracy:.4f}, and {why}. Nearest: {reached}. "
        f"{_obstacles(standing.candidates)}"
    )


def _obstacles(candidates: Sequence[Seen]) -> str:
    rejected = [seen for seen in candidates if seen.outcome == key.REJECTED]
    failed = [seen for seen in candidates if seen.outcome == key.FAILED]
    told = f" {len(failed)} failed, the last one: {failed[-1].reason}" if failed else ""
    if not rejected:
        return f"No candidate was rejected untrained.{told}"
    known = [seen for seen in rejected if seen.probe is not None and seen.probe.failure is None]
    text = f"{len(rejected)} of {len(candidates)} candidates were rejected untrained"
    ratios = [seen.cost for seen in known if seen.cost is not None]
    if ratios:
        text += f", those that were too slow or large with {min(ratios):.2f} to "
        text += f"{max(ratios):.2f} times the reference's p50"
    failures = len(rejected) - len(known)
    text += f", {failures} because they cannot be compiled" if failures else ""
    return f"{text}.{told}"


WORDS = ("#", "Candidate", "Costs")
"""Columns of `best_rows` that hold no numbers."""


def best_rows(standing: Standing, target: Target, most: int = 10) -> list[dict[str, str]]:
    """Rows of the best fully trained candidates, by column."""
    rows = []
    for seen in standing.trained()[:most]:
        bound = standing.bounds[seen.number]
        rows.append(
            {
                "#": str(seen.number),
                "Candidate": point(seen),
                target.metric.capitalize(): f"{bound.mean:.4f}",
                "Seeds": str(bound.seeds),
                f"At least ({LEVEL:.0%})": f"{bound.lower:.4f}",
                "Costs": costs(seen),
            }
        )
    return rows


def table(standing: Standing, target: Target) -> Table:
    """The best fully trained candidates."""
    rows = best_rows(standing, target)
    found = Table(title=f"Best on val, {target.backend} {target.precision}")
    for name in rows[0] if rows else WORDS:
        found.add_column(name, justify="left" if name in WORDS else "right")
    for row in rows:
        found.add_row(*row.values())
    return found
