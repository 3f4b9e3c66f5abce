"""The rows that `distillation` compares with: a bare loop, timm and torchdistill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.shared import KL_WEIGHT, LABEL_WEIGHT, LR, MOMENTUM, SGD, TEMPERATURE, Task
from pipeline.core.patches import muon_in_float32
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.records import Normalisation

Batches = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Row:
    """`train` does the steps of a round; `loss` is the loss of the first batch, not augmented."""

    train: Callable[[int], None]
    loss: Callable[[], torch.Tensor]
    deterministic: bool = False


def in_memory(task: Task, device: torch.device) -> Batches:
    """Every batch as the student takes it: float32 [B, C, H, W], normalised, channels-last.

    Training on one batch again and again would end in a loss near 0 and in denormal numbers,
    which are slow on a CPU.
    """
    model = PixelsToLogits(nn.Identity(), _student(task))
    parts = [slice(i, i + task.batch) for i in range(0, len(task.labels), task.batch)]
    images = [model(torch.tensor(task.images[part])).to(device) for part in parts]
    labels = [torch.tensor(task.labels[part], device=device) for part in parts]
    return list(zip(images, labels, strict=True))


def bare(task: Task, batches: Batches) -> Row:
    """Cross entropy in a plain torch loop, without a teacher."""
    network = task.network().to(batches[0][0].device)

    def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(network(images), labels)

    return _plain(task, batches, network, loss)


def timm_task(task: Task, batches: Batches) -> Row:
    """timm's `LogitDistillationTask` as its train.py calls it."""
    from timm.task import LogitDistillationTask

    device = batches[0][0].device
    network, teacher = task.network().to(device), task.teacher_model().network.to(device)
    # From these, in [0, 1], the task computes the normalisation between the two networks.
    pairs: list[tuple[Any, Any]] = [(network, _student(task)), (teacher, task.manifest)]
    for one, known in pairs:
        scaled = {key: tuple(v / 255 for v in getattr(known, key)) for key in ("mean", "std")}
        one.pretrained_cfg = {**one.pretrained_cfg, **scaled}
    distillation = LogitDistillationTask(
        student_model=network,
        teacher_model=teacher,
        criterion=nn.CrossEntropyLoss(),
        distill_loss_weight=KL_WEIGHT,
        task_loss_weight=LABEL_WEIGHT,
        temperature=TEMPERATURE,
        device=device,
        verbose=False,
    )
    return _plain(
        task, batches, network, lambda images, labels: distillation(images, labels)["loss"]
    )


def torchdistill_box(task: Task, batches: Batches) -> Row:
    """torchdistill's `DistillationBox` as its image classification example uses it."""
    from torchdistill.core.distillation import get_distillation_box

    device = batches[0][0].device
    network = task.network().to(device)
    kd = {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
        "temperature": TEMPERATURE,
        "alpha": LABEL_WEIGHT,
        "beta": KL_WEIGHT,
        "reduction": "batchmean",
    }
    terms = {"kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}}
    config = {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": LR, "momentum": MOMENTUM}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }
    teacher = _NormalisedAnew(task.teacher_model(), _student(task)).to(device).eval()
    box = get_distillation_box(teacher, network, {}, config, device, None, False, 1)
    box.optimizer = _optimizer(task, network)

    def train(epoch: int) -> None:
        box.pre_epoch_process(epoch=epoch)
        for images, labels in batches:
            box.post_forward_process(loss=box.forward_process(images, labels, {}))

    return Row(train, lambda: box.forward_process(*batches[0], {}))


class _NormalisedAnew(nn.Module):
    """A teacher on the student's images, float32 [N, C, H, W], normalised anew as timm does it."""

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, teacher: PixelsToLogits, student: Normalisation) -> None:
        super().__init__()
        self.network = teacher.network
        mean, std = torch.tensor(student.mean), torch.tensor(student.std)
        self.register_buffer("scale", (std * teacher.scale)[:, None, None])
        self.register_buffer("offset", ((mean - teacher.mean) * teacher.scale)[:, None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images * self.scale + self.offset)
        return logits


def _student(task: Task) -> Normalisation:
    return student_normalisation(task.manifest.channels)


def _optimizer(task: Task, network: nn.Module) -> torch.optim.Optimizer:
    """SGD, or timm's Muon as its train.py builds it; with float32, see `core.patches`."""
    its = task.training()
    if its.optimizer == SGD:
        return torch.optim.SGD(network.parameters(), lr=its.lr, momentum=its.momentum)
    muon_in_float32()
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

    made: torch.optim.Optimizer = create_optimizer_v2(
        network, opt=its.optimizer, lr=its.lr, weight_decay=its.weight_decay, momentum=its.momentum
    )
    return made


def _plain(
    task: Task,
    batches: Batches,
    network: nn.Module,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Row:
    optimizer = _optimizer(task, network)

    def train(_epoch: int) -> None:
        network.train()
        for images, labels in batches:
            optimizer.zero_grad()
            loss(images, labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return Row(train, lambda: loss(*batches[0]))
