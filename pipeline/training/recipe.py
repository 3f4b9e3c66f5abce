"""timm's optimizer, schedule and moving average as a recipe has them, and checks of a recipe."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.core.patches import import_timm, muon_by_shape, muon_in_float32
from pipeline.core.text import show
from pipeline.training.curves import tensorboard_writer
from pipeline.training.devices import check_precision
from pipeline.training.params import Recipe

WIDE = 256
"""Muon leaves matrices whose smaller side is larger to timm's AdamW. Its work grows with the square
of that side: in mobilenetv4_conv_small_050 the 1280 x 480 one before the classifier took 95% of it,
44% of a whole training step, and gained nothing."""


def check_recipe(training: Recipe, name: str) -> None:
    """Raise `PipelineError` for mistakes in a recipe that can be found without data."""
    probe, plain = nn.Linear(1, 1), training.model_copy(update={"layer_decay": 1.0})
    build_schedule(build_optimizer(probe, plain, name), training, 2, 10, name)
    steps_per_epoch(training.batch_size, training, 1, name)
    check_precision(training)
    if training.tensorboard:
        tensorboard_writer()


def steps_per_epoch(samples: int, training: Recipe, ranks: int, name: str) -> int:
    """Steps per epoch; `PipelineError` for a batch size that does not fit the data or devices."""
    size = training.batch_size
    if samples < size:
        raise PipelineError(
            f"the train split has {samples} images, a batch {size}",
            where=name,
            fix="lower `batch_size`",
        )
    if size % (ranks * training.accumulate):
        raise PipelineError(
            f"a batch of {size} cannot be divided among {ranks} device(s) in "
            f"{training.accumulate} part(s) each",
            where=name,
            fix="make `batch_size` a multiple of both together",
        )
    if size == ranks * training.accumulate:
        raise PipelineError(
            f"a batch of {size}, divided among {ranks} device(s) in {training.accumulate} part(s) "
            "each, is one image at a time, of which batch norm has no statistics",
            where=name,
            fix="lower `accumulate`, or raise `batch_size`",
        )
    return samples // size


def build_optimizer(
    objective: nn.Module, training: Recipe, name: str, *, capturable: bool = False
) -> torch.optim.Optimizer:
    """timm's optimizer over all parameters of `objective`; errors mention `name`.

    Its steps may be captured as a CUDA graph if it is `capturable`.
    """
    import_timm()
    from timm.optim import (  # type: ignore[attr-defined]
        create_optimizer_v2,
        get_optimizer_info,
        list_optimizers,
    )

    if next(objective.parameters()).device.type == "cpu":
        muon_in_float32()
    learning: Any = objective if training.layer_decay == 1 else _by_layer(objective, training)
    options: dict[str, Any] = {"momentum": training.momentum, **training.optimizer_options}
    if capturable:
        options["capturable"] = True
    if "muon" in training.optimizer:
        muon_by_shape()
    if "muon" in training.optimizer and learning is objective:
        options["fallback_list"] = _wide(objective)
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            learning,
            opt=training.optimizer,
            lr=training.lr,
            weight_decay=training.weight_decay,
            **options,
        )
        second_order = get_optimizer_info(training.optimizer).second_order
    except (AssertionError, ImportError, KeyError, TypeError, ValueError) as error:
        raise PipelineError(
            f"timm has no optimizer `{training.optimizer}` with these options ({error})",
            where=name,
            fix="correct `optimizer_options`, "
            f"{'set `cuda_graph: false`, ' * capturable}or choose one of "
            f"{', '.join(map(str, list_optimizers()[:12]))}, ...",
        ) from None
    if second_order:
        raise PipelineError(
            f"`{training.optimizer}` needs second derivatives, which are not computed", where=name
        )
    return optimizer


def _wide(objective: nn.Module) -> tuple[str, ...]:
    """The names of weights that are larger than `WIDE`, as matrices [outputs, inputs x taps]."""
    weights = {name: one for name, one in objective.named_parameters() if one.dim() > 1}
    return tuple(name for name, one in weights.items() if min(len(one), one[0].numel()) > WIDE)


def _by_layer(objective: nn.Module, training: Recipe) -> list[dict[str, Any]]:
    """Parameter groups of a network whose early layers learn slower, and of what is beside it.

    timm's own groups: a layer's rate is `layer_decay` times that of the next. Adapters learn at
    the full rate.
    """
    import_timm()
    from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]

    network = cast(nn.Module, objective.model).network
    assert isinstance(network, nn.Module)
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        network,
        training.weight_decay,
        layer_decay=training.layer_decay,
        no_weight_decay_list=getattr(network, "no_weight_decay", set)(),
    )
    inside = {id(parameter) for parameter in network.parameters()}
    beside = [one for one in objective.parameters() if id(one) not in inside]
    if beside:
        groups.append({"params": beside, "lr_scale": 1.0, "weight_decay": training.weight_decay})
    return groups


def build_average(model: nn.Module, training: Recipe) -> Any:
    """timm's moving average of the weights of `model`, with the decay `ema`; None without one.

    It is the mean over all steps until there are 1 / (1 - decay) of them. timm's own warm-up
    reaches a decay of 0.9995 only after 89,443 steps.
    """
    if training.ema is None:
        return None
    import_timm()
    from timm.utils import ModelEmaV3  # type: ignore[attr-defined]

    return ModelEmaV3(model, decay=training.ema, use_warmup=True, warmup_power=1.0)


def build_schedule(
    optimizer: torch.optim.Optimizer, training: Recipe, epochs: int, steps: int, name: str
) -> Any:
    """timm's schedule of the learning rate, updated in every step, after a linear warm-up.

    It depends on the step only, so a checkpoint holds nothing of it.

    Args:
        optimizer: whose learning rate is set.
        training: names the schedule.
        epochs: of the whole run, more than 0.
        steps: per epoch.
        name: of the network, for errors.
    """
    import_timm()
    from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]

    rising = training.warmup * epochs * steps
    arguments: dict[str, Any] = {
        "num_epochs": epochs * (1 - training.warmup),
        "warmup_epochs": epochs * training.warmup,
        "warmup_prefix": True,
        "warmup_lr": training.lr / (rising + 1),
    }
    try:
        schedule, _ = create_scheduler_v2(
            optimizer,
            sched=training.schedule,
            step_on_epochs=False,
            updates_per_epoch=steps,
            **(arguments | training.schedule_options),
        )
        if schedule is None:
            raise ValueError("`none` has no warm-up; `constant` has")
    except (AssertionError, ValueError, TypeError) as error:
        options = show(training.schedule_options)
        raise PipelineError(
            f"timm has no such schedule: {error}",
            where=f"{name}: schedule `{training.schedule}`, options {options}",
            fix="choose one of cosine, tanh, step, multistep, poly, wsd, rsqrt, constant",
        ) from None
    return schedule
