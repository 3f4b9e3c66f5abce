"""The search itself: a worker draws candidates, rejects, trains and confirms them until it ends."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import Trial, TrialState

from pipeline.compile.params import CompileParams
from pipeline.compile.untrained import Shape
from pipeline.core.errors import PipelineError
from pipeline.data.records import Manifest
from pipeline.distill.params import DistillParams, own_recipe
from pipeline.latency.params import BenchmarkParams
from pipeline.latency.records import Fingerprint
from pipeline.networks.params import Student
from pipeline.search import trials as key
from pipeline.search.decide import promoted
from pipeline.search.params import SearchParams
from pipeline.search.probe import network_of, probe
from pipeline.search.records import CANDIDATE, TRIALS, Probe
from pipeline.search.space import Choice, networks, student_of, suggest
from pipeline.search.trials import Seen, Standing, queue_again, standing
from pipeline.search.workspace import LOG, train
from pipeline.training.auto import facts, plan_views

STARTUP = 8
"""Candidates that are drawn at random, before those seen guide where the next ones lie."""

STUCK = 30
"""Points in a row that were drawn before: the space has hardly another one."""

WAIT_SECONDS = 20
PATIENCE = 90
"""How long, and how often in a row, a worker that times nothing waits for one that does."""


class UntimedError(Exception):
    """A network whose latency is not known, and cannot be measured by this worker."""


class Project(BenchmarkParams, CompileParams, DistillParams):
    """The groups of params.yaml that a search reads, beside those of its trials."""


class Search:
    """One worker."""

    def __init__(
        self,
        study: optuna.Study,
        search: SearchParams,
        project: Project,
        tree: dict[str, Any],
        opset: int,
        manifest: Manifest,
        machine: Fingerprint,
    ) -> None:
        """A worker on `study`.

        Args:
            study: of Optuna, shared with other workers.
            search: of search.yaml.
            project: of params.yaml.
            tree: params.yaml as it was read.
            opset: of ONNX files.
            manifest: of the data without test.
            machine: this one.
        """
        self.study, self.search, self.project, self.tree = study, search, project, tree
        self.opset, self.manifest, self.machine = opset, manifest, machine
        self.networks = networks(search.space, project.students)
        self.shape = Shape(manifest.image_size, manifest.channels, len(manifest.classes))
        self.exhausted = False
        """Whether `work` ended because the space has hardly a point that was not drawn."""
        self.say: Callable[[str], object] = lambda _: None
        """Is told what takes long, when it begins."""
        self.times = True
        """Whether this is the machine that the target's latency is of. Another one trains what
        has been timed there."""
        self._untimed = 0

    def standing(self) -> Standing:
        """How the search stands."""
        return standing(self.study.get_trials(), self.search, self.manifest.size("val"))

    def work(self) -> Iterator[Seen]:
        """Draw, reject, train and confirm until the target is met or the budget is spent.

        Yields:
            Each trial when it has ended.
        """
        stuck = 0
        ended: list[Seen] = []
        while stuck < STUCK and self._untimed < PATIENCE:
            self._take_over()
            now = self.standing()
            if now.met_by is not None or not self._may_go_on(now):
                return
            self.study.sampler = self._sampler()
            self.study.optimize(
                self._objective,
                n_trials=1,
                catch=(UntimedError,),
                callbacks=[lambda _, one: ended.append(Seen.of(one))],
            )
            (seen,) = ended
            ended.clear()
            if seen.outcome is None:
                self._untimed += 1
                self.say(f"waiting: {seen.choice['student']} has not been timed yet")
                time.sleep(WAIT_SECONDS)
                continue
            self._untimed = 0
            stuck = stuck + 1 if seen.outcome == key.REPEATED else 0
            if seen.outcome != key.REPEATED:
                yield seen
        self.exhausted = True

    def _may_go_on(self, now: Standing) -> bool:
        """Whether there is another trial to do: a confirmation, or a candidate in the budget."""
        budget = self.search.budget
        spent = now.seconds >= 3600 * budget.hours or (
            budget.trials is not None and len(now.candidates) >= budget.trials
        )
        self._confirm(now, at_the_end=spent)
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return not spent or bool(waiting)

    def _confirm(self, now: Standing, *, at_the_end: bool) -> None:
        """Queue trainings with fresh seeds: of whoever reaches the target, at last of the best.

        The best by its own seed: a mean over seeds is lower than a lucky one, and so the next
        lucky one would be due, and the next.
        """
        asked = {
            trial.user_attrs[key.CONFIRMS]
            for trial in self.study.get_trials(deepcopy=False)
            if key.CONFIRMS in trial.user_attrs
        }
        trained = now.trained()
        last = max((seen.value for seen in trained), default=1.0)
        for seen in trained:
            due = seen.value >= self.search.target.accuracy or (at_the_end and seen.value == last)
            if not due or seen.number in asked:
                continue
            for more in range(1, self.search.seeds):
                attributes = {key.CONFIRMS: seen.number, key.SEED: self.project.seed + more}
                self.study.enqueue_trial(seen.choice, user_attrs=attributes)

    def _sampler(self) -> BaseSampler:
        """A new one for each candidate: what it draws depends on the trials before it alone.

        Trials that were cut off do not count, so that a search that was killed draws the same.
        """
        drawn = [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state not in (TrialState.FAIL, TrialState.WAITING)
            and key.CONFIRMS not in trial.user_attrs
        ]
        text = f"{self.search.seed} {self.project.seed} {len(drawn)}"
        if self._untimed:  # another one than before
            text += f" {self._untimed}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True)

    def _objective(self, trial: Trial) -> float:
        choice = suggest(trial, self.search.space)
        if key.CONFIRMS not in trial.user_attrs and self._was_drawn(trial):
            self._end(trial, key.REPEATED, "")
            raise optuna.TrialPruned
        queued = key.PLACE in trial.user_attrs
        place = trial.user_attrs.get(key.PLACE, f"{trial.number:04d}")
        trial.set_user_attr(key.PLACE, place)
        start, before = time.monotonic(), trial.user_attrs.get(key.SECONDS, 0.0)

        def spend() -> None:
            trial.set_user_attr(key.SECONDS, before + round(time.monotonic() - start, 1))

        with self._holding(place) as lock:
            try:
                return self._try(trial, choice, place, lock)
            except KeyboardInterrupt:
                spend()
                queue_again(self.study, trial)
                raise
            except UntimedError:
                if queued:
                    queue_again(self.study, trial)
                raise
            except PipelineError as error:
                self._end(trial, key.FAILED, str(error))
                raise optuna.TrialPruned from None
            finally:
                spend()

    def _try(self, trial: Trial, choice: Choice, place: str, lock: int) -> float:
        search = self.search
        seed = trial.user_attrs.get(key.SEED, self.project.seed)
        confirms = key.CONFIRMS in trial.user_attrs
        trial.set_user_attr(key.SEED, seed)
        student = student_of(choice, self.networks, self.project.distill)
        trial.set_user_attr(key.STUDENT, student.model_dump(mode="json", exclude_defaults=True))
        found = self._probe(student)
        trial.set_user_attr(key.PROBE, found.model_dump())
        if reason := found.broken(search.target):
            self._end(trial, key.REJECTED, reason)
            raise optuna.TrialPruned
        whole = self._epochs(student)
        lengths = sorted({max(1, round(share * whole)) for share in search.halving})
        done: list[tuple[int, float]] = []
        for rung, epochs in enumerate(lengths):
            if confirms and epochs != lengths[-1]:
                continue
            folder = f"{place}/{epochs}"
            self.say(f"#{trial.number}: {epochs} of {whole} epochs, {TRIALS / folder / LOG}")
            own = _with_epochs(student, epochs)
            result = train(self.tree, search.target, own, seed, folder, lock)
            value = result.balanced if search.target.min_top1 is None else result.top1
            done.append((epochs, value))
            trial.set_user_attr(key.RUNGS, done)
            trial.report(value, rung)
            others = [] if confirms else self._others(trial.number, rung)
            if epochs != lengths[-1] and not promoted(value, others, search.keep):
                self._end(trial, key.HALVED, f"{value:.4f} after {epochs} epochs")
                raise optuna.TrialPruned
        trial.set_user_attr(key.OUTCOME, key.DONE)
        return done[-1][1]

    def _probe(self, student: Student) -> Probe:
        """What the untrained candidate costs.

        Raises:
            UntimedError: where another machine has to say that, and has not yet.
        """
        if not self.times:
            for trial in self.study.get_trials(deepcopy=False):
                its = trial.user_attrs
                if key.PROBE in its and network_of(student) == network_of(
                    Student.model_validate(its[key.STUDENT])
                ):
                    return Probe.model_validate(its[key.PROBE])
            raise UntimedError
        threads = self.project.benchmark.threads
        return probe(
            student, self.search.target, self.project, self.opset, self.shape, self.machine, threads
        )

    def _others(self, number: int, rung: int) -> list[float]:
        """Accuracies of the other candidates after as many trainings."""
        seen = (Seen.of(trial) for trial in self.study.get_trials(deepcopy=False))
        return [
            one.rungs[rung][1]
            for one in seen
            if one.number != number and one.confirms is None and len(one.rungs) > rung
        ]

    def _epochs(self, student: Student) -> int:
        """Of a whole training of the candidate."""
        _, recipe = own_recipe(CANDIDATE, student, self.project.distill)
        asked = {} if recipe.epochs is None else {"epochs": recipe.epochs}
        views = self.project.views.model_copy(update=asked)
        about = facts(self.manifest, self.manifest.image_size, views)
        about = replace(about, pretrained=student.pretrained)
        return plan_views(views, about, "students").epochs

    def _was_drawn(self, trial: Trial) -> bool:
        """Whether an earlier trial stands for the same point.

        One that was cut off does not, nor does one that only repeated it.
        """
        return any(
            other.params == trial.params
            for other in self.study.get_trials(deepcopy=False)
            if other.number < trial.number
            and key.CONFIRMS not in other.user_attrs
            and other.state != TrialState.FAIL
            and other.user_attrs.get(key.OUTCOME) != key.REPEATED
        )

    @staticmethod
    def _end(trial: Trial, outcome: str, reason: str) -> None:
        trial.set_user_attr(key.REASON, reason)
        trial.set_user_attr(key.OUTCOME, outcome)

    def _take_over(self) -> None:
        """Queue again what killed workers of this host left: running trials with a free lock.

        A database knows by its workers' heartbeats.
        """
        if self.search.storage is not None:
            return
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            place = trial.user_attrs.get(key.PLACE, f"{trial.number:04d}")
            with suppress(BlockingIOError), self._holding(place):
                self.study.tell(trial.number, state=TrialState.FAIL)
                queue_again(self.study, trial)

    @contextmanager
    def _holding(self, place: str) -> Iterator[int]:
        """Hold the lock of a trial's folder; yields its descriptor."""
        folder = TRIALS / place
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
        try:
            # The training of a worker that was killed ends soon after it, and holds the lock, too.
            alive = _is_alive(os.read(descriptor, 20))
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if alive else 0))
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)


def _is_alive(process: bytes) -> bool:
    if not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def _with_epochs(student: Student, epochs: int) -> Student:
    return student.model_copy(update={"recipe": student.recipe | {"epochs": epochs}})
