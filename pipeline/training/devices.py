"""One process or many through Lightning Fabric, and what makes many compute as one does."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.core.errors import PipelineError
from pipeline.networks.inference import training_device
from pipeline.training.params import Training

DEVICES = "EDGESTILL_DEVICES"
"""How many devices of this machine a stage takes that no launcher started; 1 by default."""

_MIXED: dict[str, Literal["bf16-mixed", "16-mixed"]] = {"bf16": "bf16-mixed", "fp16": "16-mixed"}
_FOREIGN = {"SLURM_PROCID": "SLURM_NTASKS", "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE"}
"""Launchers that start processes without telling torch of each other."""


class _Mixed(MixedPrecision):
    """Autocast inside the network alone: logits and probabilities that go in stay float32."""

    def convert_input(self, data: Any) -> Any:
        return data


def launch(training: Training | None = None) -> Fabric:
    """Join the processes that the environment asks for, at the precision of `training`.

    torchrun decides; without it, `EDGESTILL_DEVICES=N` starts N processes on this machine.
    Raises `PipelineError` for a precision that the device does not train in, and for a
    launcher whose processes would not know of each other.
    """
    kind = training_device().type
    precision = "fp32"
    if training:
        check_precision(training)
        precision = training.precision
    local = _local()
    world = _number("WORLD_SIZE") or local
    for rank, size in _FOREIGN.items():
        if world == 1 and rank in os.environ and (_number(size) or 1) > 1:
            raise PipelineError(
                "this launcher's processes would not know of each other",
                where=f"{size}={os.environ[size]}",
                fix="start one torchrun per node with it, and the stage with torchrun",
            )
    if kind == "cuda" and local > torch.cuda.device_count():
        raise PipelineError(
            f"{local} devices are asked for, {torch.cuda.device_count()} are here", where=DEVICES
        )
    fabric = Fabric(
        accelerator=kind,
        devices=local,
        num_nodes=max(world // local, 1),
        strategy="ddp" if world > 1 else "auto",
        plugins=None if precision == "fp32" else _Mixed(_MIXED[precision], kind),
    )
    fabric.launch()
    if world > 1 and DEVICES in os.environ and not fabric.is_global_zero:
        _end_with_parent()
    return fabric


def check_precision(training: Training) -> None:
    """Raise `PipelineError` for a precision that this machine does not train in."""
    if training.precision == "fp16" and training_device().type == "cpu":
        raise PipelineError(
            "float16 training needs a GPU", where="training.precision", fix="set fp32 or bf16"
        )


def one_machine(fabric: Fabric) -> bool:
    """Whether all processes run on this machine."""
    return fabric.world_size == _local()


def _local() -> int:
    return _number("LOCAL_WORLD_SIZE") or _number(DEVICES) or 1


def _end_with_parent() -> None:
    """Where the first process ends in an error, the others must not wait for it for ever."""
    death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
    ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdigit() or int(text) < 1:
        raise PipelineError(f"`{text}` is no number of devices", where=variable)
    return int(text)


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """The parts [N, ...] of all ranks as one [N · ranks, ...]; gradients flow back to each."""
    if not dist.is_initialized():
        return tensor
    gathered: torch.Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


def synchronise_batch_norm(module: nn.Module) -> None:
    """Make batch norm in training take its statistics over the batches of all ranks.

    torch's own `SyncBatchNorm` does this for GPUs alone; this works on any device, so that
    what a test shows for processes on a CPU is what runs on GPUs.
    """
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.forward = functools.partial(_synchronised, norm)  # type: ignore[method-assign]


def _synchronised(norm: _BatchNorm, x: torch.Tensor) -> torch.Tensor:
    """Batch norm of x [N, F, ...] over all ranks' N, and timm's activation behind it."""
    if not norm.training or norm.running_mean is None or norm.running_var is None:
        return type(norm).forward(norm, x)
    ranks = dist.get_world_size()
    wide = x.float() if x.element_size() < 4 else x
    others = [0, *range(2, x.ndim)]
    shape = (-1, *[1] * (x.ndim - 2))
    mean = _summed(wide.mean(others)) / ranks
    centred = wide - mean.view(shape)
    variance = _summed(centred.square().mean(others)) / ranks
    count = ranks * x.numel() / x.shape[1]
    with torch.no_grad():
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked += 1
        momentum = norm.momentum
        if momentum is None:
            momentum = 1 / norm.num_batches_tracked.item()
        norm.running_mean.lerp_(mean, momentum)
        norm.running_var.lerp_(variance * count / (count - 1), momentum)
    scale = (variance + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    y = centred * scale.view(shape)
    if norm.affine:
        y = y + norm.bias.view(shape)
    y = y.to(x.dtype)
    for name in ("drop", "act"):  # timm's BatchNormAct2d
        y = getattr(norm, name, nn.Identity())(y)
    return y


def _summed(tensor: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    """The sum over ranks; what each rank does with it adds to the gradient of all."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class _Gather(torch.autograd.Function):
    """All ranks' tensors [N, ...], one below the other, equal in N."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        ctx.share = len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.share
        return total[start : start + ctx.share]
