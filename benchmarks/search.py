"""The search beside what one would do without it, in equal time, on the same space and target.

- `search`: ours, which rejects untrained and trains by successive halving.
- `random`: random candidates, each fully trained, compiled and then timed.
- `float`: Optuna's TPE on the float student's accuracy alone, as tuners of training tools do; of
  its candidates the best float one that turns out to keep the limits is taken.

Each gets the same hours, teacher and recorded logits. What counts is top-1 on val of the compiled
artifact that keeps the limits, through its own runtime, and when it was found.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import Trial

from benchmarks.shared import count
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import write_whole
from pipeline.search import trials as key
from pipeline.search.records import FOLDER
from pipeline.search.session import make_teachers, open_search
from pipeline.search.space import Choice, student_of
from pipeline.search.study import Search
from pipeline.search.workspace import train

RESULTS = Path("benchmarks/results/search.json")


class Plain(Search):
    """Without rejection and halving: each candidate is trained, compiled and then timed."""

    by_float = False

    def _try(self, trial: Trial, choice: Choice, place: str, lock: int) -> float:
        student = student_of(choice, self.networks, self.project.distill)
        trial.set_user_attr(key.STUDENT, student.model_dump(mode="json", exclude_defaults=True))
        epochs = self._epochs(student)
        student = student.model_copy(update={"recipe": student.recipe | {"epochs": epochs}})
        target, seed = self.search.target, self.project.seed
        result = train(self.tree, target, student, seed, f"{place}/{epochs}", lock)
        trial.set_user_attr(key.RUNGS, [(epochs, result.top1)])
        found = self._probe(student)
        trial.set_user_attr(key.PROBE, found.model_dump())
        reason = found.broken(target)
        self._end(trial, key.REJECTED if reason else key.DONE, reason or "")
        return result.float_top1 if self.by_float else result.top1 * (reason is None)

    def _confirm(self, *_: object, **__: object) -> None:
        """Nobody is trained again: the time goes to more candidates."""


class Random(Plain):
    """Draws without looking at what was seen."""

    def _sampler(self) -> BaseSampler:
        drawn = len(self.study.get_trials(deepcopy=False))
        return RandomSampler(seed=1000 * self.search.seed + drawn)


class Float(Plain):
    """Looks at the float student's accuracy alone."""

    by_float = True


class Ours(Search):
    """The search, without the proof by fresh seeds, which the others do not have either."""

    def _confirm(self, *_: object, **__: object) -> None:
        """See `Plain`."""


METHODS: dict[str, type[Search]] = {"search": Ours, "random": Random, "float": Float}


def study(method: str, seed: int) -> dict[str, Any]:
    """One study in the current folder: the best artifact over the minutes, and the counts."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    worker = open_search(METHODS[method])
    worker.search = worker.search.model_copy(update={"seed": seed})
    minutes, best, steps = 0.0, 0.0, []
    counts: dict[str, int] = {}
    for seen in worker.work():
        minutes += seen.seconds / 60
        counts[str(seen.outcome)] = counts.get(str(seen.outcome), 0) + 1
        if seen.outcome == key.DONE and seen.value > best:
            best = seen.value
            steps.append((round(minutes, 1), best))
    if method == "float":  # whoever is best in float is shipped, whatever int8 makes of it
        done = [one for one in worker.standing().candidates if one.outcome == key.DONE]
        values = {trial.number: trial.value for trial in worker.study.get_trials()}
        shipped = max(done, key=lambda one: values[one.number] or 0.0, default=None)
        best = shipped.value if shipped else 0.0
    return {"best": best, "steps": steps, "minutes": round(minutes, 1), "outcomes": counts}


def main() -> None:
    options = argparse.ArgumentParser(description="the search beside random search and float TPE")
    options.add_argument("--studies", type=count, default=2)
    options.add_argument("--save", action="store_true", help=f"write {RESULTS}")
    arguments = options.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if FOLDER.exists():
        raise PipelineError(
            "a search is kept here, and each of these begins anew",
            where=str(FOLDER),
            fix="rename the folder, or run the benchmark in a copy of the project",
        )
    make_teachers()
    result: dict[str, Any] = {"search.yaml": Path("search.yaml").read_text(), "studies": {}}
    for seed in range(arguments.studies):
        for method in METHODS:
            found = study(method, seed)
            result["studies"].setdefault(method, []).append(found)
            print(f"{method} {seed}: {found['best']:.4f}, {found['outcomes']}", flush=True)
            if arguments.save:
                write_whole(RESULTS, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    run(main)
