"""The page of `python -m pipeline look`: views, class counts, sizes, near-duplicates, left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.cli.look.packed import Duplicates, Packed, Place, find_duplicates, open_packed
from pipeline.cli.params import Params
from pipeline.core.files import write_whole
from pipeline.core.text import printable
from pipeline.data.params import Augment, ViewPlan
from pipeline.data.recall import too_small
from pipeline.data.records import SPLITS
from pipeline.distill.recording import recorded_plan
from pipeline.report.plots import INK, STYLE, log_axis, rounded_limits, svg
from pipeline.report.rendering import data_uri, inline, render, style
from pipeline.report.results import REPORTS
from pipeline.report.sections import Section
from pipeline.training.auto import IMBALANCED, SMALL

PAGE = REPORTS / "look.html"

CLASSES, IMAGES, EPOCHS = 20, 5, 2
"""So many classes are shown by so many images each, in the views of so many epochs."""
COUNTED = 40
"""With more classes the largest and the smallest are listed."""
PAIRS, NAMED = 12, 300
"""Near-duplicates of a kind that are shown, and that are named; so many files left out are, too."""
TILE = 128
"""Pixels of a side, at most, in which the page holds an image."""
_SCREEN = 96
"""Pixels on the screen that an image takes about; small ones are enlarged by a whole factor."""


@dataclass(frozen=True)
class Finding:
    """A sentence at the top of the page, and whether it is something to look into."""

    text: str
    suspicious: bool


def look(params: Params, file: Path = PAGE) -> list[str]:
    """Write the page, and return its findings as lines.

    Raises:
        PipelineError: where no images are packed, or those of other settings: see `open_packed`.
    """
    packed = open_packed(params)
    limit, duplicates = find_duplicates(packed)
    plan = recorded_plan(params, packed.manifest)
    findings = _findings(packed, duplicates)
    random = np.random.default_rng(params.seed)
    classes = packed.manifest.classes
    labels = _drawn(len(classes), CLASSES, random)
    unseen = [name for label, name in enumerate(classes) if label not in labels]
    context = {
        "title": "The images before training",
        "about": _about(packed, params),
        "style": style(),
        "findings": findings,
        "plan": _plan(plan),
        "sheets": [_sheet(packed, label, plan, random) for label in labels],
        "unseen": unseen[:NAMED],
        "more_unseen": max(0, len(unseen) - NAMED),
        "screen": _screen(packed.manifest.image_size),
        "columns": IMAGES,
        "small": packed.manifest.image_size <= SMALL,
        **_counts(packed),
        "sizes": _sizes(packed),
        "size_plot": _size_plot(packed),
        "limit": f"{limit:.2f}",
        "duplicates": [_shown(packed, one) for one in duplicates],
        "rejected": _rejected(packed),
        "limited": params.data.limit,
        "warnings": [printable(warning) for warning in packed.manifest.warnings],
    }
    write_whole(file, render("cli/look/look.html.j2", context))
    return [f"{'look into: ' if one.suspicious else ''}{one.text}" for one in findings]


def _about(packed: Packed, params: Params) -> str:
    its = packed.manifest
    counts = ", ".join(f"{its.size(split):,} {split}" for split in SPLITS)
    layout = f"; {its.layout}" if its.layout else ""
    return printable(
        f"{its.source}{layout}: {counts} images of {len(its.classes)} classes, seen at "
        f"{its.image_size} x {its.image_size} px in {its.channels} channel(s); seed {params.seed}"
    )


def _findings(packed: Packed, duplicates: list[Duplicates]) -> list[Finding]:
    manifest = packed.manifest
    found = []
    for one in duplicates:
        count, total = len(one.pairs), manifest.size(one.split)
        among = "earlier train images" if one.split == one.other else f"{one.other} images"
        text = f"{count:,} of {total:,} {one.split} images are near-duplicates of {among}"
        two = sum(packed.label(a) != packed.label(b) for a, b, _ in one.pairs)
        text += f", {two:,} of them with another label" if two else ""
        found.append(Finding(text, count > 0))
    small, total = _enlarged(packed), sum(map(manifest.size, SPLITS))
    found.append(
        Finding(
            f"{small:,} of {total:,} images are below {manifest.stored_size} px and are enlarged",
            suspicious=10 * small > total,
        )
    )
    counts = manifest.counts["train"].values()
    text = f"the {len(counts):,} classes of train have {min(counts):,} to {max(counts):,} images"
    found.append(Finding(text, max(counts) > IMBALANCED * min(counts)))
    found += [Finding(text, suspicious=True) for text in too_small(manifest.counts)]
    left, warned = len(manifest.rejected), len(manifest.warnings)
    text = f"broken files left out: {left:,}; further warnings of prepare: {warned:,}"
    found.append(Finding(text, left + warned > 0))
    return found


def _plan(plan: ViewPlan) -> str:
    """The augmentation in words."""
    augment: Augment = plan.augment
    parts = ["flip left-right"] * augment.flip
    if augment.crop is not None:
        parts.append(f"crop of {augment.crop:.0%} to 100% of the area")
    parts += [f"shift by up to {augment.shift} px"] * (augment.shift > 0)
    parts += ["TrivialAugment"] * augment.trivial
    if augment.rand is not None:
        parts.append(
            f"RandAugment ({augment.rand.operations} operations of {augment.rand.magnitude})"
        )
    for name, text in (("erase", "erasing"), ("mixup", "MixUp"), ("cutmix", "CutMix")):
        value = getattr(augment, name)
        parts += [f"{text} {value:g}"] * (value > 0)
    return ", ".join(parts) or "none"


def _drawn(count: int, most: int, random: np.random.Generator) -> list[int]:
    """At most `most` of the numbers below `count`, sorted."""
    drawn: list[int] = np.sort(random.choice(count, min(count, most), replace=False)).tolist()
    return drawn


def _tile(pixels: NDArray[np.uint8]) -> str:
    """A small image with its very pixels, a larger one as a JPEG."""
    return data_uri(pixels, TILE, "PNG" if len(pixels) <= SMALL else "JPEG")


def _screen(size: int) -> int:
    """Pixels of the screen that images of `size` pixels take."""
    return size * round(_SCREEN / size) if size <= _SCREEN else _SCREEN


def _sheet(
    packed: Packed, label: int, plan: ViewPlan, random: np.random.Generator
) -> dict[str, Any]:
    """Some images of a class: as they are evaluated, and in the views that students see."""
    own = np.flatnonzero(packed.labels["train"] == label)
    samples = own[_drawn(len(own), IMAGES, random)]
    places = [Place("train", int(sample)) for sample in samples]
    rows = [("as evaluated", [packed.pixels(place) for place in places])]
    for epoch in range(min(EPOCHS, max(plan.epochs, 1))):
        pixels, _ = packed.views.batch(epoch, samples, torch.device("cpu"))
        rows.append((f"epoch {epoch + 1}", list(pixels.numpy())))
    return {
        "name": packed.manifest.classes[label],
        "count": len(own),
        "names": [packed.name(place) for place in places],
        "rows": [(text, [_tile(pixels) for pixels in shown]) for text, shown in rows],
    }


def _counts(packed: Packed) -> dict[str, Any]:
    """The classes with their images per split, the largest first; of many, both ends."""
    counts = packed.manifest.counts
    order = sorted(packed.manifest.classes, key=lambda name: -counts["train"][name])
    half = COUNTED // 2
    ends = [order] if len(order) <= COUNTED else [order[:half], order[-half:]]
    rows = [[(name, [counts[split][name] for split in SPLITS]) for name in end] for end in ends]
    return {
        "splits": SPLITS,
        "ends": rows,
        "between": len(order) - sum(map(len, ends)),
        "largest": max(counts["train"].values()),
        "classes": len(order),
    }


def _shorter(packed: Packed) -> NDArray[np.int64]:
    """The shorter side of every image before it was packed."""
    every = [min(one.width, one.height) for split in SPLITS for one in packed.origins[split]]
    return np.array(every, np.int64)


def _enlarged(packed: Packed) -> int:
    return int(np.count_nonzero(_shorter(packed) < packed.manifest.stored_size))


def _sizes(packed: Packed) -> str:
    """How large the images are, in a sentence."""
    sizes = {(one.width, one.height) for split in SPLITS for one in packed.origins[split]}
    if len(sizes) == 1:
        ((width, height),) = sizes
        return f"All images have {width} x {height} px."
    low, middle, high = np.quantile(_shorter(packed), (0, 0.5, 1))
    return (
        f"{len(sizes):,} different sizes. The shorter side has {low:.0f} to {high:.0f} px, "
        f"{middle:.0f} in the median."
    )


def _size_plot(packed: Packed) -> Markup | None:
    """A histogram of the shorter sides with the packed size; None where all are equal."""
    sides = _shorter(packed)
    size = packed.manifest.stored_size
    if sides.min() == sides.max():
        return None
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "sizes"}):
        figure = Figure(figsize=(9.5, 2.6), layout="constrained")
        axes = figure.add_subplot()
        low, high = rounded_limits(min(sides.min(), 0.95 * size), max(sides.max(), 1.05 * size))
        axes.hist(sides, np.geomspace(low, high, 49).tolist(), color="#2f81f7", alpha=0.8)
        axes.axvline(size, color=INK, lw=1.2, ls="--")
        axes.annotate(
            f"resized to {size} px", (size, 1), xycoords=axes.get_xaxis_transform(),
            xytext=(0, 3), textcoords="offset points", ha="center",
        )  # fmt: skip
        axes.set_xlabel("shorter side, px")
        axes.set_ylabel("images")
        log_axis(axes, low, high)
        axes.grid(True, axis="y")
        return inline("sizes", svg(figure))


def _shown(packed: Packed, found: Duplicates) -> dict[str, Any]:
    """The pairs of a kind: some as pictures, more by name, the rest counted."""

    def side(place: Place) -> dict[str, str]:
        return {
            "uri": _tile(packed.pixels(place)),
            "name": packed.name(place),
            "label": packed.label(place),
            "split": place.split,
        }

    within = found.split == found.other
    return {
        "heading": f"Within {found.split}" if within else f"{found.split} and {found.other}",
        "count": len(found.pairs),
        "pairs": [
            (side(one), side(other), f"{similarity:.3f}")
            for one, other, similarity in found.pairs[:PAIRS]
        ],
        "named": [
            f"{one.split}: {packed.name(one)} = {other.split}: {packed.name(other)}"
            for one, other, _ in found.pairs[PAIRS:NAMED]
        ],
        "more": max(0, len(found.pairs) - NAMED),
    }


def _rejected(packed: Packed) -> Section:
    """The files that could not be decoded, with the reasons."""
    rows = [
        {"File": printable(one.file), "Reason": printable(one.reason)}
        for one in packed.manifest.rejected[:NAMED]
    ]
    more = len(packed.manifest.rejected) - len(rows)
    if more:
        rows.append({"File": f"and {more:,} more", "Reason": "in data/packed/manifest.json"})
    return Section.of("Broken files", rows, ("File", "Reason"))
