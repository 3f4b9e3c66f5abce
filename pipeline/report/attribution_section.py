"""Where the networks look: agreement, checks, and maps side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.attribution.examples import KINDS, Examples
from pipeline.attribution.params import Attribution
from pipeline.attribution.places import spread
from pipeline.attribution.records import (
    EXAMPLES_FILE,
    MAPS,
    Agreement,
    AttributionRecord,
    Estimate,
    Explained,
    record_file,
    title,
)
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.registry import title as runtime_title
from pipeline.compile.evidence import split_digest
from pipeline.compile.records import check_owner
from pipeline.core.errors import PipelineError
from pipeline.data.recall import interval
from pipeline.data.records import PACKED, Manifest
from pipeline.report.rendering import data_uri
from pipeline.report.results import UNKNOWN
from pipeline.report.sections import Section

_THUMBNAIL, _MAP = 64, 32  # pixels of the longer side, at most
_FOR, _AGAINST = (230, 80, 0), (0, 90, 220)
_ALPHA = 200
EXPLAINED_TEXT = (
    "A map tells how much hiding each part of an image lowers the score of the class that the "
    "float student answers (occlusion), or which features of the last layer speak for it "
    "(Grad-CAM). Agreement is that of a network's maps with the float student's: Pearson's "
    "correlation, SSIM, and intersection over union of the fifth of the positions with the largest "
    "values, of which 0.11 is chance. Other reason: the share of equal answers whose maps "
    "correlate less than the limit. Intervals of means are 95% bootstrap intervals over images. In "
    "pictures, orange parts speak for the class and blue ones against it."
)
CURVES_TEXT = (
    "Area under the curve of the class's probability while pixels are hidden, the most important "
    "first (deletion: less is better), or revealed (insertion: more is better), and the gain over "
    "random maps."
)
_HEADINGS = {
    "flipped": "Flipped: an int8 artifact answers otherwise than the float student",
    "other reason": "Same answer, other reason: an int8 artifact answers likewise, but its map "
    "hardly correlates with the float student's",
    "wrong": "Wrong answers of the float student",
    "right": "Right answers of the float student",
}


@dataclass(frozen=True)
class Cell:
    """A network's map of an image, and its answer."""

    overlay: str
    """The map as a picture to be laid over the image, as a data URI."""
    answer: str
    probability: str
    mark: str
    """CSS class: whether the answer is the label."""


@dataclass(frozen=True)
class Example:
    """A row of pictures."""

    place: int
    """Index in the test split."""
    image: str
    """As a data URI."""
    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Explanations:
    """What the page shows of one student."""

    student: str
    agreement: Section
    curves: Section
    about: str
    """How the maps were made."""
    findings: tuple[str, ...]
    """What the checks say."""
    columns: tuple[str, ...]
    """Names of the networks whose maps are shown."""
    examples: tuple[tuple[str, tuple[Example, ...]], ...]
    """By kind: its heading and its rows."""


def explanations(settings: Attribution, manifest: Manifest) -> tuple[Explanations, ...]:
    """What was recorded about every student that `attribution.enabled` names.

    Raises:
        PipelineError: for a record or pictures that are missing, damaged, or of another test split
            or other artifacts.
    """
    return tuple(_of(student, manifest) for student in settings.enabled)


def _of(student: str, manifest: Manifest) -> Explanations:
    file = record_file(student)
    record = AttributionRecord.read(file)
    if record.drawn[0] != split_digest(manifest):
        what = f"maps of another test split than the one in {PACKED}"
        raise PipelineError(what, where=str(file), fix="run `dvc repro`")
    for its in record.networks:
        if its.kind == "artifact":
            check_owner(Artifact.parse(its.name), file, its.digests)
    examples = Examples.read(MAPS / student / EXAMPLES_FILE, dict(record.digests)[EXAMPLES_FILE])
    return Explanations(
        student=student,
        agreement=_agreement_section(record),
        curves=_curves_section(record),
        about=f"{record.images:,} test images in {record.minutes:.1f} minutes; "
        + ", ".join(record.settings),
        findings=tuple(_findings(record)),
        columns=tuple(map(_name, examples.names)),
        examples=tuple(_examples(examples, manifest.classes)),
    )


def _name(of_title: str) -> str:
    """A network for people: an artifact by its runtime."""
    if "/" not in of_title:
        return str(of_title)
    artifact = Artifact.parse(of_title)
    return f"{runtime_title(artifact.backend)} {artifact.precision}"


def _titled(its: Explained) -> str:
    return _name(title(its.kind, its.name))


def _shown(estimate: Estimate | None) -> str:
    return UNKNOWN if estimate is None else str(estimate)


def _row(
    name: str, kind: str, status: str, alike: float | None, its: Agreement | None
) -> dict[str, str]:
    other = UNKNOWN
    if its and its.same_answers:
        share = its.other_reason / its.same_answers
        other = f"{share:.4f} ({interval(share, its.same_answers)})"
    return {
        "Network": name,
        "Map": kind,
        "Status": status,
        "Same answer": UNKNOWN if alike is None else f"{alike:.4f}",
        "Pearson": _shown(its.pearson) if its else UNKNOWN,
        "SSIM": _shown(its.ssim) if its else UNKNOWN,
        "IoU": _shown(its.iou) if its else UNKNOWN,
        "Other reason": other,
        "Undefined": f"{its.undefined:,}" if its else UNKNOWN,
    }


def _rows(record: AttributionRecord) -> Iterator[tuple[str, dict[str, str]]]:
    """CSS class and cells of each comparison; a map that is missing is a row with its reason."""
    for its in record.networks:
        name, alike = _titled(its), its.answered_alike
        if its.status != "computed":
            status = f"{its.status.replace('_', ' ')}: {its.reason}"
            mark = "failed" if its.status == "failed" else "stale"
            yield mark, _row(name, "occlusion", status, None, None)
        elif its.kind != "student":
            yield "measured", _row(name, "occlusion", f"by {its.runtime}", alike, its.occlusion)
        if its.gradcam:
            yield "measured", _row(name, "Grad-CAM", "by torch", alike, its.gradcam)
        elif its.gradcam_reason:
            yield "stale", _row(name, "Grad-CAM", f"none: {its.gradcam_reason}", None, None)
        elif its.kind == "teacher":
            status = "not compared: the student has none"
            yield "stale", _row(name, "Grad-CAM", status, None, None)
    for check in record.sanity:
        for number, random in enumerate(check.random, 1):
            name = f"random weights {number}"
            yield "stale", _row(name, check.kind, "sanity check", None, random)


def _agreement_section(record: AttributionRecord) -> Section:
    """Every network beside the float student."""
    marks, rows = zip(*_rows(record), strict=True)
    words = ("Network", "Map", "Status")
    return Section.of("Agreement with the float student", rows, words, marks)


def _curves_section(record: AttributionRecord) -> Section:
    rows = [
        {
            "Network": _titled(its),
            "Map": curve.map,
            "Deletion": _shown(curve.deletion),
            "Less than random": _shown(curve.deletion_gain),
            "Insertion": _shown(curve.insertion),
            "More than random": _shown(curve.insertion_gain),
            "Verdict": "better than random" if curve.better_than_random else "not proven better",
        }
        for its in record.networks
        for curve in its.curves
    ]
    return Section.of("Deletion and insertion", rows, ("Network", "Map", "Verdict"))


def _findings(record: AttributionRecord) -> Iterator[str]:
    for check in record.sanity:
        if check.mixed_up:
            names = ", ".join(map(_name, check.mixed_up))
            yield (
                f"Sanity check of {check.kind}: NOT passed for {names}, which agree with the float "
                "student no more than students with random weights do"
            )
        if check.separated:
            names = ", ".join(map(_name, check.separated))
            yield (
                f"Sanity check of {check.kind}: passed for {names}, whose correlation with the "
                "float student is above that of all students with random weights, 95% intervals "
                "included"
            )
    for its in record.networks:
        if its.gradcam_layer:
            yield f"Grad-CAM of {_titled(its)} is made of the features of {its.gradcam_layer}"
        if its.constant:
            count = f"{its.constant:,} maps are constant"
            yield f"{_titled(its)}: {count}, as no patch changes the score"


def _examples(
    examples: Examples, classes: tuple[str, ...]
) -> Iterator[tuple[str, tuple[Example, ...]]]:
    for kind in KINDS:
        rows = [_example(examples, int(i), classes) for i in np.flatnonzero(examples.kinds == kind)]
        if rows:
            yield _HEADINGS[kind], tuple(rows)


def _example(examples: Examples, row: int, classes: tuple[str, ...]) -> Example:
    label = int(examples.labels[row])
    cells = tuple(
        Cell(
            overlay=data_uri(overlay(spread(its, examples.strips)), _MAP),
            answer=classes[answer],
            probability=f"{probability:.0%}",
            mark="hit" if answer == label else "miss",
        )
        for its, answer, probability in zip(
            examples.maps[row], examples.answers[row], examples.confidence[row], strict=True
        )
    )
    image = data_uri(examples.images[row], _THUMBNAIL)
    return Example(int(examples.places[row]), image, classes[label], cells)


def overlay(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A map of pixels as a picture to be laid over the image.

    Args:
        values: float64 [H, W].

    Returns:
        uint8 [H, W, 4]: orange where hiding lowers the score, blue where it raises it, the more
        opaque the larger the value; the largest absolute value is most opaque.
    """
    largest = np.abs(values).max()
    opacity = np.abs(values) / (largest if largest else 1.0)
    picture = np.empty((*values.shape, 4), np.uint8)
    picture[..., :3] = np.where((values > 0)[..., None], _FOR, _AGAINST)
    picture[..., 3] = np.round(_ALPHA * opacity)
    return picture
