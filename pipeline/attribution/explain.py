"""One network after the other: its maps, how they agree with the float student's, its curves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.attribution.agreement import Floats, constant, pearson
from pipeline.attribution.gradcam import find_layer, grad_cam
from pipeline.attribution.networks import cannot_run, open_artifact, random_students, runner
from pipeline.attribution.occlusion import Areas, Looked, Sample, look, removal_areas
from pipeline.attribution.params import Attribution
from pipeline.attribution.records import (
    Agreement,
    Curves,
    Estimate,
    Explained,
    MapKind,
    Sanity,
    packed,
    title,
)
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.base.registry import backend
from pipeline.core.errors import PipelineError
from pipeline.export.evaluate import Runner
from pipeline.networks.pixels import PixelsToLogits

_RANDOM = "random"


@dataclass
class Work:
    """What the networks of one record have in common, and the maps that were made so far."""

    settings: Attribution
    student: str
    folder: Path
    """Of the network that ships for the student."""
    sample: Sample
    noise: Floats
    """Random maps of positions, [N, G, G], for the curves of other maps to be compared with."""
    looked: dict[str, Looked] = field(default_factory=dict)
    """By `records.title` of the network; the float student comes first."""
    cams: dict[str, Floats] = field(default_factory=dict)
    """Likewise, Grad-CAM of the torch networks that have a layer for it."""

    @property
    def float_student(self) -> str:
        """The title of the network that all others are compared with."""
        return title("student", self.student)

    @property
    def own(self) -> Looked:
        """What the float student does. Its answers are the classes that all maps are about."""
        return self.looked[self.float_student]

    def agreement(self, maps: Floats, reference: Floats, its: Looked) -> Agreement:
        """Of the maps of a network with those of the float student."""
        same = its.answers == self.own.answers
        return Agreement.of(maps, reference, same, self.settings.other_reason)

    def answered_alike(self, its: Looked) -> float:
        """Share of the images to which it gives the float student's answer."""
        return float((its.answers == self.own.answers).mean())

    def curves(self, run: Runner, maps: dict[MapKind, Floats], label: str) -> tuple[Curves, ...]:
        """Deletion and insertion by each kind of map, and by random maps."""
        every: dict[str, Floats] = {str(kind): its for kind, its in maps.items()}
        every[_RANDOM] = self.noise
        steps, targets = self.settings.steps, self.own.answers
        areas = removal_areas(run, self.sample, targets, every, steps, f"{label}, curves")
        return tuple(_curve(kind, areas[kind], areas[_RANDOM]) for kind in maps)


def _curve(kind: MapKind, its: Areas, random: Areas) -> Curves:
    figures = {
        "deletion": its.deletion,
        "deletion_gain": random.deletion - its.deletion,
        "insertion": its.insertion,
        "insertion_gain": its.insertion - random.insertion,
    }
    return Curves.model_validate(
        {"map": kind} | {name: Estimate.of(values) for name, values in figures.items()}
    )


def explain_torch(
    work: Work, kind: Literal["teacher", "student"], name: str, model: PixelsToLogits
) -> Explained:
    """Maps and curves of the float student, and then of each teacher.

    Args:
        work: gets the maps.
        kind: of network.
        name: of it.
        model: it.
    """
    its_title = title(kind, name)
    run, (channels,) = runner(model), work.sample.images.shape[3:]
    targets = None if kind == "student" else work.own.answers
    its = work.looked[its_title] = look(run, work.sample, targets, its_title)
    maps: dict[MapKind, Floats] = {"occlusion": its.maps}
    layer = find_layer(model, work.sample.strips.shape[1], channels)
    if not isinstance(layer, str):
        label = f"{its_title}, Grad-CAM"
        maps["Grad-CAM"] = grad_cam(model, layer, work.sample, work.own.answers, label)
        work.cams[its_title] = maps["Grad-CAM"]
    found = Explained(
        name=name,
        kind=kind,
        status="computed",
        runtime="torch",
        answered_alike=work.answered_alike(its),
        constant=int(constant(its.maps).sum()),
        gradcam_layer=None if isinstance(layer, str) else str(layer),
        gradcam_reason=layer if isinstance(layer, str) else None,
        curves=work.curves(run, maps, its_title),
    )
    if kind == "student":
        return found
    occlusion = work.agreement(its.maps, work.own.maps, its)
    gradcam = None
    if its_title in work.cams and work.float_student in work.cams:
        gradcam = work.agreement(work.cams[its_title], work.cams[work.float_student], its)
    return found.model_copy(update={"occlusion": occlusion, "gradcam": gradcam})


def explain_artifact(work: Work, artifact: Artifact, record: ArtifactRecord) -> Explained:
    """Maps and curves of a compiled artifact in its own runtime.

    One that this machine cannot run, or open, gets a status and the reason.
    """
    key, digests = artifact.key, record.digests
    if reason := cannot_run(artifact):
        return Explained(
            name=key, kind="artifact", status="not_computed", reason=reason, digests=digests
        )
    try:
        run = open_artifact(artifact, record)
    except PipelineError as error:
        return Explained(
            name=key, kind="artifact", status="failed", reason=error.what, digests=digests
        )
    its = work.looked[key] = look(run, work.sample, work.own.answers, key)
    return Explained(
        name=key,
        kind="artifact",
        status="computed",
        runtime=str(backend(artifact.backend).evaluator()),
        digests=digests,
        answered_alike=work.answered_alike(its),
        constant=int(constant(its.maps).sum()),
        occlusion=work.agreement(its.maps, work.own.maps, its),
        curves=work.curves(run, {"occlusion": its.maps}, key),
        by_image=packed(pearson(its.maps, work.own.maps)),
    )


def check_sanity(
    work: Work, networks: list[Explained], calibration: NDArray[np.uint8], seed: int
) -> tuple[Sanity, ...]:
    """Do the maps depend on what was learned? Those of students with random weights tell.

    Adebayo et al., Sanity Checks for Saliency Maps (arXiv 1810.03292): a map that looks the same
    without what a network learned explains nothing of it.

    Args:
        work: the maps of all networks.
        networks: what was found of them.
        calibration: images for the batch norms of random students.
        seed: of their weights.
    """
    by_kind: dict[MapKind, list[Agreement]] = {"occlusion": [], "Grad-CAM": []}
    for i, model in enumerate(random_students(work.folder, calibration, seed), 1):
        label = f"random weights {i}"
        its = look(runner(model), work.sample, work.own.answers, label)
        by_kind["occlusion"].append(work.agreement(its.maps, work.own.maps, its))
        layer = find_layer(model, *work.sample.images.shape[2:])
        if not isinstance(layer, str):
            cams = grad_cam(model, layer, work.sample, work.own.answers, f"{label}, Grad-CAM")
            by_kind["Grad-CAM"].append(work.agreement(cams, work.cams[work.float_student], its))
    compared: dict[MapKind, dict[str, Agreement | None]] = {
        "occlusion": {title(its.kind, its.name): its.occlusion for its in networks},
        "Grad-CAM": {title(its.kind, its.name): its.gradcam for its in networks},
    }
    return tuple(
        separation(kind, random, compared[kind]) for kind, random in by_kind.items() if random
    )


def separation(
    kind: MapKind, random: list[Agreement], networks: dict[str, Agreement | None]
) -> Sanity:
    """Which networks agree with the float student more than all random students do.

    The whole 95% interval of a network's Pearson correlation has to be above those of all random
    students. A random student without any defined correlation agrees with nothing: 0.

    Args:
        kind: of map.
        random: agreement of each random student.
        networks: agreement of the others by title; None: they were not compared.
    """
    highest = max(_bound(its, "high") or 0.0 for its in random)
    separated: list[str] = []
    mixed_up: list[str] = []
    for name, its in networks.items():
        if its is not None:
            low = _bound(its, "low")
            (separated if low is not None and low > highest else mixed_up).append(name)
    return Sanity(
        kind=kind, random=tuple(random), separated=tuple(separated), mixed_up=tuple(mixed_up)
    )


def _bound(its: Agreement, side: Literal["low", "high"]) -> float | None:
    """An end of the interval of Pearson's correlation; of a single image the value itself."""
    if its.pearson is None:
        return None
    end: float | None = getattr(its.pearson, side)
    return its.pearson.mean if end is None else end
