"""Two processes on a CPU compute what one does at the same global batch; rank 0 alone writes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.cli.params import Params
from pipeline.core.errors import PipelineError
from pipeline.distill.params import LossTerm
from pipeline.distill.recording import record_teacher_logits
from pipeline.distill.student import distill_student
from pipeline.training.devices import launch, synchronise_batch_norm
from pipeline.training.records import read_curve
from pipeline.training.teacher import train_teacher
from tests.distill.conftest import DISTILL, LOSSES, distillation
from tests.training.conftest import STUDENT, split, stage

STUDENT_WEIGHTS = Path(f"models/students/{STUDENT}/model.safetensors")
BATCHWISE = [
    {"name": "kl", "weight": 0.9, "options": {"temperature": 4.0}},
    {"name": "cross_entropy", "weight": 0.1},
    {"name": "dist", "weight": 0.5},
    {"name": "hint", "weight": 0.5, "taps": ["late"]},
    {"name": "similarity_preserving", "weight": 10.0, "taps": ["late"]},
]


def gradients(part: slice, name: str, synchronised: bool) -> tuple[nn.Module, torch.Tensor]:
    """An objective of one loss beside cross entropy in float64, and its value on a part."""
    target = LOSSES[name].target
    taps = {"labels": (), "logits": (), "levels": ("middle", "late")}.get(target, ("late",))
    terms = (LossTerm(name=name, weight=0.5, taps=taps), LossTerm(name="cross_entropy", weight=1))
    objective = distillation(terms).double().train()
    for teacher in objective._teachers.values():
        teacher.double()
    module: nn.Module = objective
    if synchronised:
        synchronise_batch_norm(objective)
        module = DistributedDataParallel(objective)
    pixels, labels = (torch.from_numpy(array[:32][part]) for array in split(1))
    value = torch.stack(list(module(pixels, labels).values())).sum()
    value.backward()
    return objective, value


def one_of_two(rank: int, folder: str, names: tuple[str, ...]) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = {}
    for name in names:
        objective, _ = gradients(slice(rank, None, 2), name, synchronised=True)
        found[name] = {key: p.grad for key, p in objective.named_parameters()}
    if rank == 0:
        torch.save(found, f"{folder}/gradients.pt")
    dist.destroy_process_group()
    gc.freeze()  # or the interpreter looks for garbage in all of torch before it ends


def test_two_processes_have_the_gradients_of_one(folder: Path) -> None:
    """In float64, for every loss: also those that compare the samples of a batch."""
    names = tuple(LOSSES)
    torch.multiprocessing.spawn(one_of_two, (str(folder), names), nprocs=2)
    together = torch.load(folder / "gradients.pt")
    for name in names:
        objective, _ = gradients(slice(None), name, synchronised=False)
        for key, parameter in objective.named_parameters():
            torch.testing.assert_close(
                together[name][key], parameter.grad, rtol=1e-5, atol=1e-7, msg=f"{name}: {key}"
            )


@pytest.fixture
def phase() -> float:
    """Share of the steps under int8's rounding, which makes a last bit a whole step of a grid."""
    return 0.0


@pytest.fixture
def alone(configured: Callable[..., Params], phase: float) -> dict[str, torch.Tensor]:
    """The weights that one process gives, written to disk beside its curve."""
    settings = configured().distill.training.model_dump() | {"optimizer": "sgd", "lr": 1e-4}
    distill = {"losses": BATCHWISE, "training": settings, "int8_phase": phase}
    params = configured(views={"epochs": 2}, distill=distill)
    train_teacher(params, "resnet")
    record_teacher_logits(params)
    distill_student(params, STUDENT)
    weights = load_file(STUDENT_WEIGHTS)
    STUDENT_WEIGHTS.unlink()
    Path("metrics/curves", STUDENT).rename("metrics/curves/alone")
    return weights


@pytest.mark.parametrize(("phase", "near"), [(0.0, 1e-4), (0.5, 2e-3)], ids=["float", "int8"])
def test_two_processes_train_as_one(alone: dict[str, torch.Tensor], near: float) -> None:
    """Within what float32 gives: one process on two threads is as far from one on one."""
    done = stage("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", *DISTILL)
    said, _ = done.communicate(timeout=180)
    assert done.returncode == 0, said
    assert said.count("test top-1") == 1
    rows = zip(read_curve("alone"), read_curve(STUDENT), strict=True)
    for one, two in rows:
        assert two.train_loss == pytest.approx(one.train_loss, rel=near)
        assert two.val_loss == pytest.approx(one.val_loss, rel=near)
    together = load_file(STUDENT_WEIGHTS)
    for name, tensor in alone.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(together[name], tensor, rtol=2e-2, atol=2e-3)


def test_two_processes_record_what_one_does(
    configured: Callable[..., Params], folder: Path
) -> None:
    params = configured()
    train_teacher(params, "resnet")
    record_teacher_logits(params)
    file = folder / "models/teacher_logits/resnet/logits.npy"
    before = file.read_bytes()
    file.unlink()
    done = stage("-m", "stages.record_teacher", EDGESTILL_DEVICES="2")
    said, _ = done.communicate(timeout=180)
    assert done.returncode == 0, said
    after = np.load(file)
    header = len(before) - after.nbytes
    one = np.frombuffer(before[header:], np.float32).reshape(after.shape)
    np.testing.assert_allclose(after, one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", ["two", "0"])
def test_a_number_of_devices_that_is_none_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESTILL_DEVICES", text)
    with pytest.raises(PipelineError, match="EDGESTILL_DEVICES"):
        launch()


def test_a_launcher_whose_processes_would_all_write_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(PipelineError, match="would not find each other"):
        launch()


def test_a_batch_that_the_devices_cannot_share_is_refused(
    configured: Callable[..., Params],
) -> None:
    settings = configured().distill.training.model_dump() | {"batch_size": 25}
    losses = [{"name": "cross_entropy", "weight": 1.0}]
    configured(distill={"losses": losses, "training": settings}, teacher_logits={"record": False})
    done = stage(*DISTILL, EDGESTILL_DEVICES="2")
    said, _ = done.communicate(timeout=120)
    assert done.returncode != 0 and "cannot be divided among 2 device(s)" in said
