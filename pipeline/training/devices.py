"""One process or several by Lightning Fabric; several compute the gradients of one."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives  # dist.nn is deprecated
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.core.errors import PipelineError
from pipeline.networks.inference import evaluate, training_device
from pipeline.networks.pixels import PixelsToLogits
from pipeline.training.params import Regularisation

DEVICES = "EDGESTILL_DEVICES"
"""Number of devices of this machine that a stage uses where no launcher started it; else 1."""

_MIXED: dict[str, Literal["bf16-mixed", "16-mixed"]] = {"bf16": "bf16-mixed", "fp16": "16-mixed"}
_FOREIGN = {"SLURM_PROCID": "SLURM_NTASKS", "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE"}
"""By a launcher's rank: its number of processes. torch does not read these variables."""


class _Mixed(MixedPrecision):
    """Autocast that leaves the inputs alone: recorded logits and soft labels stay float32."""

    def convert_input(self, data: Any) -> Any:
        return data


def launch(training: Regularisation | None = None) -> Fabric:
    """Start or join the processes that the environment asks for.

    Under torchrun they are torchrun's; without it, `EDGESTILL_DEVICES=N` starts N processes on this
    machine.

    Args:
        training: its precision is used; None: float32.

    Returns:
        Fabric, launched.

    Raises:
        PipelineError: for a precision that the device does not train in, more devices than there
            are, and a launcher whose processes would not find each other.
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
                "this launcher's processes would not find each other",
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


def check_precision(training: Regularisation) -> None:
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
    """Kill this process when the first one ends, so that it does not wait for it for ever."""
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
    """The tensors of all ranks, [N, ...] each, as one [N * ranks, ...]; gradients flow back."""
    if not dist.is_initialized():
        return tensor
    parts = collectives.all_gather_single(tensor.contiguous(), 0, dist.group.WORLD)  # type: ignore[arg-type]
    return _waited(parts)


def synchronise_batch_norm(module: nn.Module) -> None:
    """Let all batch norms of `module` take their training statistics over the batches of all ranks.

    torch's own `SyncBatchNorm` works on GPUs only. This works on any device, so tests on a CPU
    check the code that runs on GPUs.
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
    mean = _sum(wide.mean(others)) / ranks
    centred = wide - mean.view(shape)
    variance = _sum(centred.square().mean(others)) / ranks
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


def _sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over ranks; gradients flow back to each."""
    return _waited(collectives.all_reduce(tensor, "sum", dist.group.WORLD))  # type: ignore[arg-type]


def _waited(found: torch.Tensor) -> torch.Tensor:
    """A plain tensor from the asynchronous one that a collective returns."""
    plain: torch.Tensor = collectives.wait_tensor(found)  # type: ignore[no-untyped-call]
    return plain


def evaluate_on_ranks(
    fabric: Fabric, model: PixelsToLogits, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> tuple[float, float]:
    """Mean cross entropy and top-1: see `evaluate`; each rank computes its share of the images."""
    rank, ranks = fabric.global_rank, fabric.world_size
    loss, top1 = evaluate(model, images[rank::ranks], labels[rank::ranks])
    if ranks == 1:
        return loss, top1
    share = len(labels[rank::ranks])
    sums = torch.tensor([loss * share, top1 * share, share], dtype=torch.float64)
    loss, correct, count = over_ranks(fabric, sums, "sum").tolist()
    return loss / count, round(correct) / count


def over_ranks(fabric: Fabric, value: torch.Tensor, how: Literal["sum", "mean"]) -> torch.Tensor:
    """The sum or the mean of `value` over all ranks, on each of them."""
    reduced = fabric.all_reduce(value.to(fabric.device), reduce_op=how)
    assert isinstance(reduced, torch.Tensor)
    return reduced
