"""A bundle's README.md as a model card of the Hugging Face hub, from the records alone.

The hub reads the YAML between the first two `---`, as huggingface/hub-docs, modelcard.md,
specifies it, and shows the rest: how to use the bundle, then where it comes from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.base.registry import backend
from pipeline.bundle.params import BundleParams
from pipeline.bundle.readme import readme
from pipeline.bundle.records import Bundle
from pipeline.compile.records import CompiledMetrics
from pipeline.core.errors import PipelineError
from pipeline.core.records import METRICS
from pipeline.data.recall import WORST, Recall, interval
from pipeline.data.records import SPLITS, Manifest
from pipeline.distill.params import LossTerm, own_recipe, read_robust
from pipeline.networks.records import CARD, TEACHERS, ModelCard
from pipeline.networks.shipped import shipped
from pipeline.training.records import ModelMetrics

HUB_DATASETS = {
    "CIFAR10": "uoft-cs/cifar10",
    "CIFAR100": "uoft-cs/cifar100",
    "FashionMNIST": "zalando-datasets/fashion_mnist",
    "MNIST": "ylecun/mnist",
}
"""By torchvision's name: where the hub has the same images with the same test split."""
SHOWN = 20
"""Classes and float layers that are named; of more, the rest is counted."""


@dataclass(frozen=True)
class Trained:
    """The records of a trained network."""

    name: str
    card: ModelCard
    metrics: ModelMetrics

    @classmethod
    def read(cls, name: str, folder: Path, file: Path) -> Trained:
        """From its card and its metrics; `PipelineError` where they are not of one network."""
        card, metrics = ModelCard.read_beside(folder), ModelMetrics.read(file)
        if (metrics.val_top1, metrics.parameters) != (card.val_top1, card.parameters):
            raise PipelineError(
                f"its figures are not those of {folder / CARD}",
                where=str(file),
                fix="remove it and run `dvc repro`",
            )
        return cls(name, card, metrics)

    def __str__(self) -> str:
        return f"`{self.name}`, timm's {self.card.arch} with {self.card.parameters:,} parameters"


@dataclass(frozen=True)
class Lineage:
    """How a student was made: the networks, and the params of its distillation."""

    student: Trained
    teachers: tuple[Trained, ...]
    combine: str
    losses: tuple[LossTerm, ...]

    @classmethod
    def read(cls, student: str, params: BundleParams) -> Lineage:
        """From the records of `student` and its teachers; `PipelineError` for a missing one."""
        metrics = METRICS / TEACHERS.name
        teachers = tuple(
            Trained.read(name, TEACHERS / name, metrics / f"{name}.json")
            for name in params.teachers.enabled
        )
        distill, _ = own_recipe(student, params.students.zoo[student], params.distill)
        combine, losses = params.teachers.combine, distill.losses
        its = shipped(student, params.prune.enabled)
        return cls(Trained.read(student, its.folder, its.metrics), teachers, combine, losses)


def model_card(
    bundle: Bundle,
    artifact: ArtifactRecord,
    metrics: CompiledMetrics,
    manifest: Manifest,
    lineage: Lineage,
) -> str:
    """README.md of a bundle: front matter, how to use it, and how it was made."""
    sections = (
        _made(artifact, metrics, lineage),
        _data(manifest),
        _accuracy(metrics, manifest, lineage),
        *([_int8(artifact)] if artifact.precision == "int8" else []),
        *backend(bundle.backend).sections(artifact),
        _limits(manifest),
    )
    return "\n".join((front_matter(bundle, manifest), readme(bundle), *sections))


def front_matter(bundle: Bundle, manifest: Manifest) -> str:
    """The metadata in YAML with its fences. The licence of the weights is not known."""
    its = backend(bundle.backend)
    tags = (its.hub_library, *its.tags, bundle.precision, "knowledge-distillation")
    hub_id = HUB_DATASETS.get(manifest.source.removeprefix("torchvision "))
    result = {
        "task": {"type": "image-classification", "name": "Image Classification"},
        "dataset": {
            "type": hub_id or _identifier(manifest.source),
            "name": _source(manifest),
            "split": "test",
            "args": {"images": bundle.test_images},
        },
        "metrics": [{"type": "accuracy", "value": bundle.top1, "name": "Top-1"}],
    }
    name = Artifact(bundle.student, bundle.backend, bundle.precision).slug
    content: dict[str, Any] = {
        "license": "unknown",
        "library_name": its.hub_library,
        "pipeline_tag": "image-classification",
        "tags": list(tags),
        **({"datasets": [hub_id]} if hub_id else {}),
        "metrics": ["accuracy"],
        "model-index": [{"name": name, "results": [result]}],
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---\n"


def _source(manifest: Manifest) -> str:
    """The source for readers: of a folder its name alone, as paths are private."""
    kind, _, name = manifest.source.partition(" ")
    return f"folder {Path(name).name}" if kind == "folder" else manifest.source


def _identifier(source: str) -> str:
    """The hub's type for data that it may not have: its loader of folders, or a valid name."""
    if source.startswith("folder "):
        return "imagefolder"
    return re.sub(r"[^a-z0-9._-]+", "-", source.removeprefix("torchvision ").lower()).strip("-._")


def _made(artifact: ArtifactRecord, metrics: CompiledMetrics, lineage: Lineage) -> str:
    student, teachers = lineage.student, lineage.teachers
    epochs, best = student.card.epochs, student.card.best_epoch
    whose = f"the {lineage.combine} of these teachers" if len(teachers) > 1 else "this teacher"
    robust = student.card.recipe.get("robust")
    kept = "is kept" if robust else "was the best on val and is kept"
    lines = [
        f"- student: {student}, seed {student.card.seed}; epoch {best} of {epochs} {kept}",
        *(f"- teacher: {teacher}" for teacher in teachers),
        f"- distilled from {whose}: it minimised {' + '.join(map(_term, lineage.losses))}",
    ]
    if robust:
        lines.append(f"- learnt to be robust by {read_robust(robust)}")
    if student.card.shapes is not None:
        lines.append("- pruned after distillation: its layers have fewer channels than timm's")
    if share := student.card.int8_phase:
        lines.append(f"- the last {share:.0%} of its training steps computed under int8's rounding")
    if artifact.quantizer:
        lines.append(f"- quantized by {artifact.quantizer}")
    for attempt in metrics.ladder:
        if attempt.kept:
            rung = attempt.rung.replace("_", " ")
            lines.append(f"- int8 recipes tried: {len(metrics.ladder)}; kept: {rung}")
    tools = ", ".join(f"{name} {version}" for name, version in artifact.versions.items())
    return _section("How it was made", [*lines, f"- compiled with {tools}"])


def _term(term: LossTerm) -> str:
    details = [f"{name} {value:g}" for name, value in term.options.items()]
    if term.taps:
        details.append(f"taps {', '.join(term.taps)}")
    if term.schedule != "constant":
        details.append(f"{term.schedule} over {term.span:.0%} of the steps")
    return f"{term.weight:g} x {term.name}" + (f" ({'; '.join(details)})" if details else "")


def _data(manifest: Manifest) -> str:
    sizes = ", ".join(f"{manifest.size(split):,} {split}" for split in SPLITS)
    lines = [
        f"- source: {_plain(_source(manifest))}",
        f"- licence of the data: {_plain(manifest.licence)}",
        f"- images: {sizes}; {manifest.image_size}x{manifest.image_size} pixels, "
        f"{manifest.channels} channel(s)",
        f"- classes: {_some([_plain(name) for name in manifest.classes])}",
    ]
    if manifest.rejected:
        lines.append(f"- {len(manifest.rejected)} broken or contradicting files were left out")
    return _section("Data", lines)


def _accuracy(metrics: CompiledMetrics, manifest: Manifest, lineage: Lineage) -> str:
    images, recall = metrics.images, metrics.recall
    rows = [
        (f"this artifact, through {metrics.evaluated_with}", metrics.top1, recall),
        *(
            (of, one.metrics.top1, one.metrics.recall)
            for of, one in (
                ("the float student, through torch", lineage.student),
                *((f"the teacher `{one.name}`", one) for one in lineage.teachers),
            )
        ),
    ]
    table = ["| top-1 | 95% interval | balanced | of |", "| ---: | --- | ---: | --- |"]
    for of, top1, its in rows:
        balanced = f"{its.balanced:.4f}" if its else "not recorded"
        table.append(f"| {top1:.4f} | {interval(top1, images)} | {balanced} | {of} |")
    text = (
        f"All on the same {images:,} test images. Balanced accuracy is the mean recall of the "
        f"classes, and the intervals are Wilson's. The artifact answers as the float student does "
        f"on {metrics.agreement:.2%} of them; {metrics.lost} right answers were lost, "
        f"{metrics.won} won."
    )
    return _section("Accuracy", [*table, "", text, "", *_recalls(recall, manifest)])


def _recalls(recall: Recall, manifest: Manifest) -> list[str]:
    """The table of the classes of the lowest recall."""
    lines = ["The lowest recalls of this artifact:", ""]
    lines += ["| class | images | recall | 95% interval |", "| --- | ---: | ---: | --- |"]
    for i in recall.worst(WORST):
        share, images = recall.by_class[i], recall.images[i]
        name = _plain(manifest.classes[i])
        lines.append(f"| {name} | {images:,} | {share:.4f} | {interval(share, images)} |")
    return lines


def _int8(artifact: ArtifactRecord) -> str:
    execution = artifact.execution
    lines = [
        f"- {execution.int8_mac_share:.1%} of {execution.macs:,} multiply-accumulates are in int8, "
        "read back from the artifact",
        f"- conv and linear layers in float: {_some(list(map(str, execution.in_float)))}",
    ]
    if note := backend(artifact.backend).int8_note:
        lines.append(f"- {note}")
    if execution.per_channel is not None:
        whose = "all" if execution.per_channel else "not all"
        lines.append(f"- {whose} int8 weights have a scale per output channel")
    if execution.partitions:
        lines.append(f"- partitions: {execution.partitions}")
    if artifact.exact_input_images:
        lines.append(
            f"- raw pixels are the quantized input without loss: the same bits on "
            f"{artifact.exact_input_images} images"
        )
    return _section("What runs in int8", lines)


def _limits(manifest: Manifest) -> str:
    lines = [
        f"- Whatever the image shows, the answer is one of these {len(manifest.classes)} classes.",
        f"- It learned and was tested on {_plain(_source(manifest))} alone. How it does on images "
        "of another origin was not measured.",
        "- How its accuracy differs between groups of people was not measured, and nothing is "
        "claimed about fairness.",
        "- Whether its probabilities tell how often it is right was not measured.",
        "- Nobody has recorded a licence for these weights: `license` says unknown until whoever "
        "publishes them sets it. The licence of the data, above, is not one.",
    ]
    return _section("Limits", lines)


def _section(heading: str, lines: list[str]) -> str:
    return "\n".join([f"## {heading}", "", *lines, ""])


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN]) or "none"
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _plain(text: str) -> str:
    """A name that a user chose, escaped for Markdown."""
    return re.sub(r"([\\`*_\[\]<>#|~&])", r"\\\1", text)
