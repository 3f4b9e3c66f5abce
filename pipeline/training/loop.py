"""The training loop of teachers and students: seeded, resumable, on any number of devices."""

from __future__ import annotations

import math
import time
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.core.progress import track
from pipeline.data.records import Arrays
from pipeline.data.views import Views
from pipeline.networks.inference import evaluate
from pipeline.networks.pixels import PixelsToLogits
from pipeline.training.balance import epoch_order
from pipeline.training.checkpoints import load_checkpoint, save_checkpoint
from pipeline.training.curves import Curves
from pipeline.training.devices import evaluate_on_ranks, over_ranks, synchronise_batch_norm
from pipeline.training.estimate import WORTH_AN_ESTIMATE, check_time
from pipeline.training.head import fit_classifier
from pipeline.training.objective import DivergedError, Fitted, Objective, Recording, Run
from pipeline.training.recipe import (
    build_average,
    build_optimizer,
    build_schedule,
    steps_per_epoch,
)
from pipeline.training.records import Epoch
from pipeline.training.rounding import Rounding
from pipeline.training.step import Step, captures

_LOOK_EVERY = 50
"""Steps between checks of the loss, each of which makes the host wait for the GPU."""


def fit(
    fabric: Fabric,
    objective: Objective,
    views: Views,
    val: Arrays,
    run: Run,
    recorded: Recording | None = None,
) -> Fitted:
    """Minimise the sum of `objective`'s terms over `views`, and keep the best epoch on val: that of
    the highest top-1, and of equal ones, which few images often give, that of the lowest loss.

    The order of samples, their views and dropout depend on the seed and the step only. A run that
    was stopped is resumed from its checkpoint and ends with the same bits. With `ema`, the moving
    average of the model's weights is evaluated and kept. Where the run ends in a phase under int8's
    rounding, only its epochs are kept, and are evaluated under rounding. With `keep_last` the last
    epoch is kept, whatever its top-1. Only rank 0 writes files.

    Args:
        fabric: launched.
        objective: its model gets the weights of the best epoch.
        views: the train images.
        val: images uint8 [N, H, W, C] and labels int64 [N].
        run: name, recipe, checkpoint.
        recorded: teacher logits for `views`, if there are any.

    Raises:
        DivergedError: for a loss that becomes infinite or NaN.
        PipelineError: for a batch size that does not fit.
    """
    if run.epochs == 0:
        return _evaluate_only(fabric, objective, views, val, run)
    saved = load_checkpoint(run.key, fabric.device)
    start = None
    if run.training.freeze != "none" and saved is None:
        model, train = objective.model.to(fabric.device), views.known
        flip, balance = views.augment.flip, run.training.balance
        start = fit_classifier(model, train, val, flip=flip, balance=balance, name=run.name)
        if fabric.is_global_zero:
            print(f"{run.name}: val top-1 {start:.4f} with the backbone as it was")
    if run.training.freeze == "backbone":
        return _evaluate_only(fabric, objective, views, val, run)
    return _Loop(fabric, objective, views, val, run, recorded, saved, start).go()


class _Loop:
    """The state of one run; `_state` lists what a checkpoint keeps of it."""

    def __init__(
        self,
        fabric: Fabric,
        objective: Objective,
        views: Views,
        val: Arrays,
        run: Run,
        recorded: Recording | None,
        saved: dict[str, Any] | None = None,
        start: float | None = None,
    ) -> None:
        """A run from its checkpoint `saved`, or from a model with the top-1 `start` on val."""
        self.fabric, self.views, self.val, self.run = fabric, views, val, run
        training = run.training
        self.steps = steps_per_epoch(len(views), training, fabric.world_size, run.name)
        self.objective = objective.to(fabric.device)
        self.model = objective.model
        if fabric.world_size > 1:
            synchronise_batch_norm(objective)
        graph = captures(training.cuda_graph, fabric)
        self.optimizer = build_optimizer(objective, training, run.name, capturable=graph)
        self.schedule = build_schedule(self.optimizer, training, run.epochs, self.steps, run.name)
        self.ema = build_average(self.model, training)
        self.step = 0
        self.rows: list[dict[str, float]] = []
        self.start = start
        self.rounding = Rounding(run.int8, run.epochs, self.steps)
        self.best = {} if start is None else deepcopy(self.model.state_dict())
        self.stepper = Step(fabric, objective, self.optimizer, views, run, recorded)
        if saved is not None:
            self._restore(saved)
        self._saved = time.monotonic()

    def go(self) -> Fitted:
        """Train the epochs that are still to do."""
        run, first = self.run, self.fabric.is_global_zero
        quiet = not (first and run.curves)
        if self.step == 0 and run.epochs * self.steps >= WORTH_AN_ESTIMATE:
            self._estimate()
        curves = Curves(run.name, self.rows, tensorboard=run.training.tensorboard, quiet=quiet)
        with self.rounding:
            while len(self.rows) < run.epochs:
                epoch = len(self.rows)
                self._train_epoch(epoch)
                row = self._close_epoch()
                curves.log(row)
                if first:
                    print(
                        f"{run.name} {epoch + 1}/{run.epochs}: "
                        f"train loss {row['train_loss']:.3f}, val loss {row['val_loss']:.3f}, "
                        f"val top-1 {row['val_top1']:.4f}{' in int8' * bool(self.rounding.grids)}"
                    )
        self.model.load_state_dict(self.best)
        scores = self._scores()
        place, reached = scores.index(max(scores)), max(scores)[0]
        if self.rounding.grids:  # until here under rounding
            _, reached = evaluate_on_ranks(self.fabric, self.model, *self.val)
            if first and (warning := self.rounding.warning(self.rows, len(self.val[1]))):
                print(f"{run.name}: {warning}")
        return Fitted(place, reached)

    def _estimate(self) -> None:
        """Tell how long the run will take, from two steps that are undone.

        Raises:
            PipelineError: for more than `max_hours`.
        """
        run, optimizer = self.run, self.optimizer
        before = {name: value.clone() for name, value in self.objective.state_dict().items()}
        precision = self.fabric.strategy.precision.state_dict()
        samples = np.linspace(0, len(self.views) - 1, run.training.batch_size).astype(np.int64)
        self._set_mode()
        for _ in range(2):  # the first one allocates memory and compiles kernels
            start = time.perf_counter()
            self._train_step(0, samples)
            self._check_finite()  # waits for a GPU
            seconds = time.perf_counter() - start
        self.objective.load_state_dict(before)
        optimizer.state.clear()
        self.fabric.strategy.precision.load_state_dict(precision)
        self.stepper.sums = {}
        self.stepper.forget()
        told = self.fabric.is_global_zero and run.curves
        check_time(run, self.steps, seconds, len(self.val[1]), quiet=not told)

    def _set_mode(self) -> None:
        """Training mode, but for the model's batch norms where their statistics are frozen."""
        self.objective.train()
        if self.run.training.batch_norm == "frozen":
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _train_epoch(self, epoch: int) -> None:
        """The steps of an epoch that are still to do, in the epoch's own order of samples.

        The incomplete last batch is left out.
        """
        size = self.run.training.batch_size
        random = np.random.default_rng([self.run.seed, epoch])
        order = epoch_order(self.views.labels, self.run.training.balance, random)
        todo = range(self.step - epoch * self.steps, self.steps)
        bar = f"{self.run.name} {epoch + 1}/{self.run.epochs}"
        self._set_mode()
        for i in track(
            todo,
            bar,
            self.steps * size,
            step=size,
            done=todo.start * size,
            quiet=not self.fabric.is_global_zero,
        ):
            if self.rounding.reach(self.step, self._models()):
                self.stepper.forget()
            self._train_step(epoch, order[i * size : (i + 1) * size])
            self.step += 1
            if self.ema is not None:
                self.ema.update(self.model, step=self.step)
            last = i + 1 == self.steps
            if last or i % _LOOK_EVERY == 0:
                self._check_finite()
            due = time.monotonic() - self._saved >= self.run.checkpoint_seconds
            if due and not last and self._loss().isfinite():
                self._save()

    def _train_step(self, epoch: int, samples: NDArray[np.int64]) -> None:
        """One update from a batch, at the rate of the schedule."""
        self.schedule.step_update(self.step)
        self.stepper.take(self.step, epoch, samples, self.step / (self.run.epochs * self.steps))

    def _loss(self) -> torch.Tensor:
        """The sum of the losses of this epoch so far, on this rank."""
        return torch.stack(list(self.stepper.sums.values())).sum()

    def _check_finite(self) -> None:
        """Raise `DivergedError` for an infinite loss or NaN; all ranks check at the same steps."""
        loss = over_ranks(self.fabric, self._loss(), "sum").item()
        if not math.isfinite(loss):
            raise self._diverged(f"the loss became {loss} by step {self.step}")

    def _diverged(self, what: str) -> DivergedError:
        fix = "lower `lr`, lengthen `warmup` or set `clip_norm`"
        if self.rounding.grids:
            fix = "lower `distill.int8_phase`: it began under int8's rounding; or lower `lr`"
        return DivergedError(what, where=self.run.name, fix=fix)

    def _close_epoch(self) -> dict[str, float]:
        """Evaluate on val, keep the best state, save a checkpoint; the row of the curves."""
        shipped = self._models()[-1]
        val_loss, top1 = evaluate_on_ranks(self.fabric, shipped, *self.val)
        if not math.isfinite(val_loss):
            epoch = len(self.rows) + 1
            raise self._diverged(f"the loss on val is {val_loss} after epoch {epoch}")
        means = {
            name: over_ranks(self.fabric, value, "mean").item() / self.steps
            for name, value in self.stepper.sums.items()
        }
        row = {
            "train_loss": sum(means.values()),
            "val_loss": val_loss,
            "val_top1": top1,
            "lr": max(float(group["lr"]) for group in self.optimizer.param_groups),
        }
        if len(means) > 1:
            row |= {f"loss_{name}": value for name, value in means.items()}
        before = max(self._scores())
        self.rows.append(row)
        if self._scores()[-1] > before:
            self.best = deepcopy(shipped.state_dict())
        self.stepper.sums = {}
        self._save()
        return row

    def _scores(self) -> list[tuple[float, float]]:
        """Top-1 and -loss on val: of the start, which equals do not replace, and of each epoch.

        Epochs before the first one of a phase under rounding do not count: their top-1 is -1. Nor
        does any but the last one, where that is kept.
        """
        last = self.run.keep_last
        start = (-1.0 if self.start is None or last else self.start, math.inf)
        first = self.run.epochs - 1 if last else self.rounding.first_epoch
        top1s = [row["val_top1"] if i >= first else -1.0 for i, row in enumerate(self.rows)]
        return [start, *zip(top1s, (-row["val_loss"] for row in self.rows), strict=True)]

    def _models(self) -> tuple[PixelsToLogits, ...]:
        """The model, and the moving average of its weights if there is one."""
        return (self.model,) if self.ema is None else (self.model, self.ema.module)

    def _state(self) -> dict[str, Any]:
        state = {
            "step": self.step,
            "rows": self.rows,
            "start": self.start,
            "best": self.best,
            "grids": self.rounding.state(),
            "sums": self.stepper.sums,
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }
        return state if self.ema is None else state | {"ema": self.ema.module.state_dict()}

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            save_checkpoint(self.run.key, self._state())
        self._saved = time.monotonic()

    def _restore(self, state: dict[str, Any]) -> None:
        self.start = state["start"]
        self.step, self.rows = state["step"], state["rows"]
        self.best = state["best"]
        self.rounding.restore(state["grids"], self._models())
        # The checkpoint has the sums of rank 0, which count for all ranks in the mean over them.
        mine = self.fabric.world_size if self.fabric.is_global_zero else 0
        self.stepper.sums = {name: mine * value for name, value in state["sums"].items()}
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])


def _evaluate_only(
    fabric: Fabric, objective: Objective, views: Views, val: Arrays, run: Run
) -> Fitted:
    """No training: one row of the curves, with the losses of the unchanged network."""
    model = objective.to(fabric.device).model
    train_loss, _ = evaluate(model, *views.known)
    val_loss, top1 = evaluate(model, *val)
    row = Epoch(train_loss=train_loss, val_loss=val_loss, val_top1=top1, lr=0.0)
    quiet = not (fabric.is_global_zero and run.curves)
    Curves(run.name, [row.model_dump()], tensorboard=False, quiet=quiet)
    return Fitted(0, top1)
