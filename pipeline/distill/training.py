"""The one training loop: teachers and students, seeded, resumable after every epoch."""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dvclive.live import Live
from numpy.typing import NDArray
from timm.optim import create_optimizer_v2, list_optimizers  # type: ignore[attr-defined]
from torch import nn

from pipeline.contracts import CURVES, Epoch
from pipeline.data.augment import augment
from pipeline.errors import PipelineError
from pipeline.files import write_whole
from pipeline.networks.build import PixelsToLogits
from pipeline.networks.inference import evaluate
from pipeline.params import Training
from pipeline.progress import track

CHECKPOINTS = Path(".work/checkpoints")
"""Outside the stages' outputs, which DVC deletes before it runs a stage."""

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Fitted:
    """The state of the best epoch on val has been loaded into the model."""

    epochs: tuple[Epoch, ...]
    best_epoch: int
    val_top1: float


def fit(
    objective: nn.Module,
    train: tuple[Images, Labels],
    val: tuple[Images, Labels],
    training: Training,
    *,
    seed: int,
    key: str,
    name: str,
) -> Fitted:
    """Minimise `objective(pixels, labels)` on `train`, keep the epoch that is best on `val`.

    Images are uint8 [N, H, W, C], labels int64 [N]. Order and augmentation depend on `seed`
    and the epoch alone, so a run that was stopped goes on from its last whole epoch, found
    by `key` (a digest of all that decides the result), and ends with the same bits.
    `objective.model` is the `PixelsToLogits` to ship; other parameters only train along. The
    curves go to DVCLive's folder for `name`.
    """
    if training.epochs == 0:
        return _as_it_came(objective, train, val, name)
    size = training.batch_size
    if len(train[0]) < size:
        raise PipelineError(
            f"the train split has {len(train[0])} images, a batch {size}",
            where=name,
            fix="lower `batch_size`",
        )
    device = next(objective.parameters()).device
    optimizer = _optimizer(objective, training, name)
    steps = len(train[0]) // size
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, steps * training.epochs, training.warmup)
    )
    checkpoint = CHECKPOINTS / f"{key}.pt"
    state: dict[str, Any] = {"epochs": [], "best": None}
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    with _live(name, state["epochs"]) as live:
        for epoch in range(len(state["epochs"]), training.epochs):
            bar = f"{name} {epoch + 1}/{training.epochs}"
            loss = _train_epoch(objective, train, training, optimizer, schedule, seed, epoch, bar)
            val_loss, top1 = evaluate(_model(objective), *val)
            if top1 > max((row["val_top1"] for row in state["epochs"]), default=-1.0):
                best = _model(objective).state_dict()
                state["best"] = {key: value.clone() for key, value in best.items()}
            lr = float(schedule.get_last_lr()[0])
            row: dict[str, float] = {
                "train_loss": loss,
                "val_loss": val_loss,
                "val_top1": top1,
                "lr": lr,
            }
            state["epochs"].append(row)
            state |= {
                "objective": objective.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
            }
            buffer = io.BytesIO()
            torch.save(state, buffer)
            write_whole(checkpoint, buffer.getvalue())
            _log(live, row)
            print(f"{bar}: train loss {loss:.3f}, val loss {val_loss:.3f}, val top-1 {top1:.4f}")
    _model(objective).load_state_dict(state["best"])
    epochs = tuple(Epoch.model_validate(row) for row in state["epochs"])
    top1s = [row.val_top1 for row in epochs]
    return Fitted(epochs, top1s.index(max(top1s)) + 1, max(top1s))


def _as_it_came(
    objective: nn.Module, train: tuple[Images, Labels], val: tuple[Images, Labels], name: str
) -> Fitted:
    """No training: one row with the losses of the network as it came."""
    train_loss, _ = evaluate(_model(objective), *train)
    val_loss, top1 = evaluate(_model(objective), *val)
    row = Epoch(train_loss=train_loss, val_loss=val_loss, val_top1=top1, lr=0.0)
    rows: list[dict[str, float]] = [row.model_dump()]
    with _live(name, rows):
        return Fitted((row,), 0, top1)


def _live(name: str, epochs: list[dict[str, float]]) -> Live:
    """DVCLive's log of a run, with the epochs that an earlier, stopped try has finished."""
    live = Live(
        dir=str(CURVES / name),
        dvcyaml=None,
        report=None,
        save_dvc_exp=False,  # DVC's own stages
    )
    for row in epochs:
        _log(live, row)
    return live


def _log(live: Live, row: dict[str, float]) -> None:
    for metric, value in row.items():
        live.log_metric(metric, value)
    live.next_step()  # type: ignore[no-untyped-call]


def lr_factor(step: int, total: int, warmup: float) -> float:
    """Linear warm-up over a share `warmup` of `total` steps, then a half cosine down to 0.

    Cosine schedule: Loshchilov, Hutter 2016, arXiv 1608.03983, without restarts.
    """
    rising = warmup * total
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(total - rising, 1)))


def run_key(*parts: object) -> str:
    """A digest of everything that decides a training run: configuration, data, code.

    The code is every Python file of the package: a change anywhere starts afresh.
    """
    digest = hashlib.sha256(repr(parts).encode())
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:20]


def forget_checkpoint(key: str) -> None:
    """To be called once the run's outputs are in place."""
    (CHECKPOINTS / f"{key}.pt").unlink(missing_ok=True)


def _model(objective: nn.Module) -> PixelsToLogits:
    model = objective.model
    assert isinstance(model, PixelsToLogits)
    return model


def _optimizer(objective: nn.Module, training: Training, label: str) -> torch.optim.Optimizer:
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            objective,
            opt=training.optimizer,
            lr=training.lr,
            weight_decay=training.weight_decay,
            momentum=training.momentum,
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise PipelineError(
            f"timm has no optimizer `{training.optimizer}` ({error})",
            where=label,
            fix=f"choose one of {', '.join(map(str, list_optimizers()[:12]))}, ...",
        ) from None
    return optimizer


def _train_epoch(
    objective: nn.Module,
    train: tuple[Images, Labels],
    training: Training,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    seed: int,
    epoch: int,
    name: str,
) -> float:
    """One pass in a seeded order, the incomplete last batch left out; the mean loss."""
    images, labels = train
    device = next(objective.parameters()).device
    size, steps = training.batch_size, len(images) // training.batch_size
    generator = torch.Generator(device).manual_seed(seed * 100_003 + epoch)
    order = np.random.default_rng([seed, epoch]).permutation(len(images))
    total = torch.zeros((), device=device)
    objective.train()
    for step in track(range(steps), name, total=steps * size, step=size):
        chosen = np.sort(order[step * size : (step + 1) * size])  # in file order: fewer seeks
        pixels = augment(torch.from_numpy(images[chosen]).to(device), training.augment, generator)
        loss = objective(pixels, torch.from_numpy(labels[chosen]).to(device))
        if not torch.isfinite(loss):
            raise PipelineError(
                f"the loss became {loss.item()} in step {step + 1}",
                where=name,
                fix="lower `lr`, lengthen `warmup` or set `clip_norm`",
            )
        optimizer.zero_grad()
        loss.backward()
        if training.clip_norm is not None:
            nn.utils.clip_grad_norm_(objective.parameters(), training.clip_norm)
        optimizer.step()
        schedule.step()
        total += loss.detach()
    return total.item() / steps
