"""Stage `prune`: a distilled student loses channels in steps, and learns on after each."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline.accuracy.metrics import lost_and_won
from pipeline.compile.untrained import Shape
from pipeline.core.records import Record
from pipeline.data.answers import top1
from pipeline.data.records import PACKED, Manifest, load_split
from pipeline.distill.records import TEACHER_LOGITS
from pipeline.distill.student import Lessons, lessons
from pipeline.networks.branches import has_branches
from pipeline.networks.inference import evaluate, predict, set_up_torch
from pipeline.networks.pixels import PixelsToLogits
from pipeline.networks.records import PRUNED, STUDENTS, Shapes
from pipeline.networks.shipped import SUFFIX
from pipeline.networks.weights import check_card, load_model
from pipeline.prune.choice import Scores
from pipeline.prune.cost import check_goal, reached
from pipeline.prune.importance import Batch, fisher, magnitude
from pipeline.prune.params import PruneParams
from pipeline.prune.records import PLANS, PRUNING, Cut, Plan, Pruning
from pipeline.prune.steps import SHOWN, Surgeon
from pipeline.training.auto import facts, plan_int8_phase, plan_recipe, plan_views, tell
from pipeline.training.checkpoints import forget_checkpoint, run_key
from pipeline.training.devices import launch
from pipeline.training.loop import fit
from pipeline.training.objective import Run
from pipeline.training.params import Recipe
from pipeline.training.task import Task, checkpoint_seconds, train_and_write

LIBRARY = "torch-pruning"

SCORED = 1024
"""Images of train whose losses say how important a channel is."""

STEP_SHARE = 1 / 8
"""`step_epochs: auto`, of the epochs of distillation."""


@dataclass(frozen=True)
class _Course:
    """How the student learns on."""

    recipe: Recipe
    step_epochs: int
    epochs: int
    int8_phase: float


def prune_student(params: PruneParams, name: str) -> None:
    """Stage `prune@S`: models/pruned/S/, metrics/students/S-pruned.json, its curves.

    In each step the channels go that cost the least accuracy for what they save, and the student
    learns on with the losses, views and recorded teacher logits of its distillation. The last
    stretch ends under int8's rounding, as distillation does. A run that was stopped goes on with
    the channels that it had chosen.

    Args:
        params: what the stage reads.
        name: the student S; models/students/S has it unpruned.

    Raises:
        PipelineError: for a network that cannot be pruned, a goal that cannot be reached or
            measured here, and a missing library.
    """
    check_goal(params)
    _Pruner(params, name).go()


class _Pruner:
    """One run of the stage."""

    def __init__(self, params: PruneParams, name: str) -> None:
        distill, shown = params.own(name)
        self.fabric = launch(distill.training)
        self.params = params.model_copy(update={"distill": distill})
        self.name, self.network = name, params.students.zoo[name]
        self.manifest = Manifest.read(PACKED / "manifest.json")
        set_up_torch(params.seed)
        before, card = load_model(STUDENTS / name, fuse=False)
        check_card(card, self.manifest, STUDENTS / name)
        self.card, self.before = card, before
        about = facts(self.manifest, self.manifest.image_size, shown, card.started_from)
        recipe = plan_recipe(distill.training, about, "students")
        # The classifier is fitted by now, and what is left of all layers has to learn.
        recipe = recipe.model_copy(update={"freeze": "none"})
        plan, its = plan_views(shown, about, "students"), params.prune
        step = max(1, round(STEP_SHARE * plan.epochs)) if plan.epochs else 0
        self.course = _Course(
            recipe,
            step if its.step_epochs == "auto" else its.step_epochs,
            plan.epochs if its.epochs == "auto" else its.epochs,
            plan_int8_phase(distill.int8_phase, about, has_branches(before)),
        )
        shape = Shape(card.image_size, card.channels, len(card.classes))
        self.surgeon = Surgeon(self.params, name, shape, before)
        if self.fabric.is_global_zero:
            left = plan.model_copy(update={"epochs": self.course.epochs})
            phase = self.course.int8_phase
            tell(f"{name}{SUFFIX}", card.started_from, left, recipe, about, phase)

    def go(self) -> None:
        """All steps, and what is left of the last one learns longest."""
        taught = self._taught(self._model(self.surgeon.copy(self.before)))
        steps = self.params.prune.steps
        decided = (self.params.prune, self.course, self.card.weights_digest, taught.settings)
        key = run_key(decided, self.manifest.digests)
        file, val = PLANS / f"{key}.json", load_split("val")
        cuts: list[Cut] = []
        keys: list[str] = []
        for step in range(steps):
            plan = self._decide(file, taught, step)
            network = self.surgeon.without(taught.objective.model.network, plan.cuts[step])
            share, shapes = self.surgeon.share(network), self.surgeon.shapes(network)
            taught = self._taught(self._model(network))
            _, after_cut = evaluate(taught.objective.model, *val)
            reached_top1 = None
            if step + 1 < steps:
                keys.append(run_key(decided, self.manifest.digests, plan.cuts[: step + 1]))
                reached_top1 = self._learn(taught, keys[-1], step)
            removed = {root: len(units) for root, units in plan.cuts[step].items()}
            cut = Cut(share=share, removed=removed, val_top1_cut=after_cut, val_top1=reached_top1)
            cuts.append(cut)
            if self.fabric.is_global_zero:
                learnt = "" if reached_top1 is None else f", {reached_top1:.4f} after learning on"
                print(
                    f"{self.name}{SUFFIX}, step {step + 1}/{steps}: {share:.1%} of the "
                    f"{SHOWN[self.surgeon.what]} left, val top-1 {after_cut:.4f}{learnt}",
                    flush=True,
                )
        self._finish(taught, plan, tuple(cuts), shapes)
        if self.fabric.is_global_zero:
            file.unlink(missing_ok=True)
            for done in keys:
                forget_checkpoint(done)

    def _finish(self, taught: Lessons, plan: Plan, steps: tuple[Cut, ...], shapes: Shapes) -> None:
        """The last stretch of learning, and all files."""
        params, goal = self.params, self.params.prune.to
        model = taught.objective.model
        macs, weights = self.surgeon.macs_and_weights(self.surgeon.copy(model.network))
        macs_before, weights_before = self.surgeon.macs_and_weights(self.before)
        measured = plan.measured

        def beside(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Mapping[str, Record]:
            images, _ = load_split(self.manifest.final)
            unpruned = predict(self._model(self.before).to(self.fabric.device), images).numpy()
            lost, won = lost_and_won(logits, unpruned, labels)
            return {
                PRUNING: Pruning(
                    target=goal.what,
                    share=goal.share,
                    reached=reached(goal, measured) if measured else steps[-1].share,
                    macs=macs, macs_before=macs_before,
                    weights=weights, weights_before=weights_before,
                    measured=measured,
                    steps=steps,
                    fixed=self.surgeon.fixed(),
                    top1_before=top1(unpruned, labels), top1=top1(logits, labels),
                    lost=lost, won=won, images=len(labels),
                    versions={LIBRARY: importlib.metadata.version(LIBRARY)},
                )
            }  # fmt: skip

        task = Task(
            name=self.name,
            kind=STUDENTS.name,
            folder=PRUNED / self.name,
            network=self.network,
            input_size=self.card.input_size,
            training=self.course.recipe,
            epochs=self.course.epochs,
            seed=params.seed,
            settings=(taught.settings, self.card.weights_digest, plan.cuts),
            int8_phase=self.course.int8_phase,
            started_from=self.card.started_from,
            shapes=shapes,
            suffix=SUFFIX,
        )
        train_and_write(
            self.fabric, task, self.manifest, taught.objective, taught.views, taught.recorded,
            beside,
        )  # fmt: skip

    def _decide(self, file: Path, taught: Lessons, step: int) -> Plan:
        """The plan with this step in it; rank 0 makes it, unless a stopped run already has."""
        plan = Plan.read(file) if file.exists() else Plan()
        self.fabric.barrier()
        if len(plan.cuts) > step:
            return plan
        scores = self._scores(taught)  # by all ranks, whose losses may compare their batches
        if self.fabric.is_global_zero:
            network = self.surgeon.copy(taught.objective.model.network)
            self.surgeon.plan(network, scores, plan).write(file)
        self.fabric.barrier()
        return Plan.read(file)

    def _model(self, network: nn.Module) -> PixelsToLogits:
        return PixelsToLogits(network, self.card.normalisation)

    def _scores(self, taught: Lessons) -> Scores:
        network = taught.objective.model.network
        cut = self.surgeon.cut(self.surgeon.copy(network))
        if self.params.prune.importance == "magnitude":
            return magnitude(network, cut)
        return fisher(taught.objective, cut, self._batches(taught))

    def _batches(self, taught: Lessons) -> Iterator[Batch]:
        """`SCORED` images, evenly spread over train, as the first epoch shows them."""
        views, device = taught.views, self.fabric.device
        count, size = min(SCORED, len(views)), self.course.recipe.batch_size
        samples = np.linspace(0, len(views) - 1, count).astype(np.int64)
        for start in range(0, count, size):
            part = samples[start : start + size]
            pixels, labels = views.batch(0, part, device)
            recorded = taught.recorded
            yield pixels, labels, recorded.batch(0, part, device) if recorded else None

    def _taught(self, model: PixelsToLogits) -> Lessons:
        """What a form of the student learns from."""
        set_up_torch(self.params.seed)  # the same adapters, whatever was computed before
        recipe, params, network = self.course.recipe, self.params, self.network
        return lessons(params, network, recipe, model, self.fabric, self.manifest, TEACHER_LOGITS)

    def _learn(self, taught: Lessons, key: str, step: int) -> float:
        """Learn on after a step; top-1 on val."""
        run = Run(
            f"{self.name}{SUFFIX}, step {step + 1}", key, self.params.seed, self.course.recipe,
            self.course.step_epochs, checkpoint_seconds(), curves=False,
        )  # fmt: skip
        val = load_split("val")
        return fit(self.fabric, taught.objective, taught.views, val, run, taught.recorded).val_top1
