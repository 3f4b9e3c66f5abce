"""Stage `record_teacher`: the teachers' logits for every view that students will see.

A view depends on (seed, epoch, sample) only. So the logits at [epoch, sample] of a recording belong
to exactly the pixels that training sees there, whatever the batch size, the order of samples and
the number of devices are (as in TinyViT, arXiv 2207.10666).
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from pipeline.core.errors import PipelineError
from pipeline.core.files import checked, move_contents, sha256, whole_folder, write_whole
from pipeline.core.progress import track
from pipeline.data import augment, trivial, views
from pipeline.data.params import ViewPlan
from pipeline.data.records import PACKED, Manifest
from pipeline.data.unlabelled import FILE, epoch_images, load_shown
from pipeline.data.views import Views, seed_of
from pipeline.distill.augmix import MixedViews
from pipeline.distill.params import Augmix, RecordingParams, Robust
from pipeline.distill.records import TEACHER_LOGITS, TeacherLogitsRecord
from pipeline.distill.teachers import load_teacher, teacher_digest
from pipeline.networks.inference import set_up_torch
from pipeline.networks.pixels import PixelsToLogits
from pipeline.training.auto import Facts, plan_views
from pipeline.training.checkpoints import run_key
from pipeline.training.devices import launch, one_machine

INDEX = "record.json"
WORK = Path(".work/teacher_logits")
"""Where a recording is made; one that was stopped is resumed after its last whole epoch."""

_IMAGES = 512
"""Per call of a teacher at most: see `pipeline.data.batches`."""
_DONE = "epochs_done"


def student_views(
    params: RecordingParams, manifest: Manifest, robust: Robust | None = None
) -> Views:
    """The views that students see, the same for all of them; with `augmix`, their mixes, too."""
    seed, classes = seed_of("views", params.seed), len(manifest.classes)
    plan, shown = recorded_plan(params, manifest), load_shown(manifest, params.views)
    kind: Callable[..., Views] = Views
    if isinstance(robust, Augmix):
        kind = partial(MixedViews, settings=robust)
    return kind(
        shown.images, shown.labels, plan.augment,
        classes=classes, seed=seed, size=manifest.image_size, known=shown.known,
    )  # fmt: skip


def recorded_plan(params: RecordingParams, manifest: Manifest) -> ViewPlan:
    """The augmentation of all students, and the epochs of views for which logits are recorded.

    By default they are the epochs of a student that starts from weights. A student from random
    weights needs more where images are few, and sees the same views again.
    """
    known, unknown = epoch_images(manifest, params.views)
    size = manifest.image_size
    about = Facts(known + unknown, size, pretrained=True, unlabelled=unknown)
    plan, epochs = plan_views(params.views, about, "students"), params.teacher_logits.epochs
    if epochs == "auto" or not plan.epochs:
        return plan
    return plan.model_copy(update={"epochs": epochs})


def wanted(params: RecordingParams, manifest: Manifest) -> TeacherLogitsRecord:
    """The record that a recording for these params, this data and the teachers on disk has."""
    plan = recorded_plan(params, manifest)
    parts = [plan.model_dump_json(), str(params.seed)]
    parts += [manifest.digests[f"train_{part}.npy"] for part in ("images", "labels")]
    parts += [str(manifest.image_size)]
    if manifest.unlabelled:
        parts += [manifest.digests[FILE], str(params.views.unlabelled)]
    parts += [sha256(Path(str(module.__file__))) for module in (augment, trivial, views)]
    recorded = params.teacher_logits.record and plan.epochs > 0
    names = params.teachers.enabled if recorded else ()
    top_k = params.teacher_logits.top_k
    if top_k is not None and top_k >= len(manifest.classes):
        top_k = None
    return TeacherLogitsRecord(
        teachers={name: teacher_digest(name) for name in names},
        views=hashlib.sha256("\n".join(parts).encode()).hexdigest(),
        epochs=plan.epochs,
        samples=sum(epoch_images(manifest, params.views)),
        classes=len(manifest.classes),
        top_k=top_k,
        temperature=None if top_k is None else params.teacher_logits.temperature,
    )


class RecordedLogits:
    """The recorded logits of all teachers, memory-mapped: a `Recording` for `fit`."""

    def __init__(self, expected: TeacherLogitsRecord, folder: Path = TEACHER_LOGITS) -> None:
        """Open the recording in `folder`.

        Args:
            expected: what it has to be of; see `wanted`.
            folder: of the recording.

        Raises:
            PipelineError: where it is another one, and for a file that is missing or damaged.
        """
        found = TeacherLogitsRecord.read(folder / INDEX)
        asked = expected.model_dump(exclude={"digests"})
        stale = [name for name, value in asked.items() if getattr(found, name) != value]
        if stale:
            raise PipelineError(
                f"the teacher logits were recorded for other {', '.join(stale)}",
                where=str(folder / INDEX),
                fix="record them again: run `dvc repro`",
            )
        for path, digest in found.digests.items():
            checked(folder / path, digest)
        self.epochs, self._record = expected.epochs, expected
        self._arrays = {name: _open(folder / name, expected, "r") for name in expected.teachers}

    def batch(self, epoch: int, samples: NDArray[np.int64], device: torch.device) -> torch.Tensor:
        """float32 [T, B, C]: each teacher's logits for the views of `samples` in `epoch`."""
        rows = []
        for arrays in self._arrays.values():
            parts = [augment.put(array[epoch, samples], device) for array in arrays]
            rows.append(parts[0] if len(parts) == 1 else self._expanded(*parts))
        return torch.stack(rows)

    def _expanded(self, *parts: torch.Tensor) -> torch.Tensor:
        assert self._record.temperature is not None
        return expand(*parts, classes=self._record.classes, temperature=self._record.temperature)


def compress(
    logits: torch.Tensor, top_k: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `top_k` = K largest of the logits [N, C], and a summary of the others.

    Returns:
        The largest logits, float32 [N, K]; their classes, int32 [N, K]; and T log sum exp(z / T)
        of the other C - K logits z at the `temperature` T, float32 [N].
    """
    values, classes = logits.topk(top_k, dim=1)
    others = (logits.scatter(1, classes, -torch.inf) / temperature).logsumexp(1) * temperature
    return values, classes.int(), others


def expand(
    values: torch.Tensor,
    kept: torch.Tensor,
    others: torch.Tensor,
    *,
    classes: int,
    temperature: float,
) -> torch.Tensor:
    """Logits float32 [N, C] from the results of `compress`, C = `classes`.

    At the `temperature` of `compress` the probabilities of the kept classes are exact. The other
    classes share the rest evenly, as in TinyViT (arXiv 2207.10666), where that temperature is 1;
    at a higher one they would have too large a share.
    """
    rest = others - temperature * math.log(classes - kept.shape[1])
    logits = rest[:, None].expand(-1, classes).clone()
    return logits.scatter_(1, kept.long(), values)


def record_teacher_logits(params: RecordingParams, folder: Path = TEACHER_LOGITS) -> None:
    """Stage `record_teacher`: models/teacher_logits/, with nothing but a record without `record`.

    Every process writes its share of the samples into the same files.

    Args:
        params: what the stage reads.
        folder: the recording.

    Raises:
        PipelineError: for processes on several machines.
    """
    fabric = launch()
    if not one_machine(fabric):
        raise PipelineError(
            "several machines cannot write into the same files",
            where="record_teacher",
            fix="run this stage on one machine, with all of its devices",
        )
    set_up_torch(params.seed)
    manifest = Manifest.read(PACKED / "manifest.json")
    record = wanted(params, manifest)
    work = WORK / run_key(record)
    for name in record.teachers:
        teacher = load_teacher(name, manifest).to(fabric.device)
        _record(fabric, teacher, student_views(params, manifest), record, work / name)
    if fabric.is_global_zero:
        with whole_folder(folder) as scratch:
            if record.teachers:
                move_contents(work, scratch)
            for name in record.teachers:
                (scratch / name / _DONE).unlink()
            arrays = sorted(scratch.glob("*/*.npy"))
            digests = {file.relative_to(scratch).as_posix(): sha256(file) for file in arrays}
            record.model_copy(update={"digests": digests}).write(scratch / INDEX)
        count = len(record.teachers)
        print(f"{count} teacher(s) recorded on {record.epochs} x {record.samples:,} views")
    fabric.barrier()


@torch.no_grad()
def _record(
    fabric: Fabric, teacher: PixelsToLogits, shown: Views, record: TeacherLogitsRecord, folder: Path
) -> None:
    done = folder / _DONE
    if fabric.is_global_zero and not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _open(folder, record, "w+")
        write_whole(done, "0")
    fabric.barrier()
    arrays = _open(folder, record, "r+")
    if fabric.device.type == "cuda":
        shown.keep_on(fabric.device)
    share = np.arange(fabric.global_rank, record.samples, fabric.world_size)
    step = teacher.images_per_call(_IMAGES, *shown.images.shape[1:3])
    starts = range(0, len(share), step)
    for epoch in range(int(done.read_text()), record.epochs):
        bar = f"{folder.name} {epoch + 1}/{record.epochs}"
        quiet = not fabric.is_global_zero
        for start in track(starts, bar, len(starts) * step, step=step, quiet=quiet):
            samples = share[start : start + step]
            pixels, _ = shown.batch(epoch, samples, fabric.device)
            logits = teacher(pixels).float()
            parts = _kept(logits, record)
            for array, part in zip(arrays, parts, strict=True):
                array[epoch, samples] = part.cpu().numpy()
        for array in arrays:
            array.flush()
        fabric.barrier()
        if fabric.is_global_zero:
            write_whole(done, str(epoch + 1))


def _kept(logits: torch.Tensor, record: TeacherLogitsRecord) -> tuple[torch.Tensor, ...]:
    if record.top_k is None or record.temperature is None:
        return (logits,)
    return compress(logits, record.top_k, record.temperature)


def _open(folder: Path, record: TeacherLogitsRecord, mode: str) -> list[np.memmap[Any, Any]]:
    """The arrays of one teacher, [epochs, samples, ...]: all logits, or what `compress` returns."""
    views_shape = (record.epochs, record.samples)
    layout: dict[str, tuple[type[np.generic], tuple[int, ...]]]
    if record.top_k is None:
        layout = {"logits": (np.float32, (record.classes,))}
    else:
        layout = {
            "values": (np.float32, (record.top_k,)),
            "classes": (np.int32, (record.top_k,)),
            "others": (np.float32, ()),
        }
    arrays = []
    for name, (dtype, shape) in layout.items():
        file = folder / f"{name}.npy"
        if mode == "w+":
            array = open_memmap(file, mode, dtype, (*views_shape, *shape))
            # Allocate all of it: a full disk is an error here, not a bus error while writing.
            with file.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, array.offset + array.nbytes)
        arrays.append(open_memmap(file, "r" if mode == "r" else "r+"))
    return arrays
