"""Answers on the test split: confusions, calibration and the mistakes of highest probability."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.accuracy.metrics import calibration_error
from pipeline.accuracy.records import Mistake
from pipeline.compile.evidence import Evidence, split_digest
from pipeline.compile.records import check_owner
from pipeline.core.errors import PipelineError
from pipeline.data.recall import WORST, Recall, interval
from pipeline.data.records import PACKED, Manifest, load_split
from pipeline.report.rendering import data_uri
from pipeline.report.results import UNKNOWN, Row
from pipeline.report.sections import Section

MATRIX_CLASSES = 30
"""With more classes the most frequent confusions are listed instead of a matrix."""
_LISTED = 30
_TOP = 3
_THUMBNAIL = 64  # pixels of the longer side, at most


@dataclass(frozen=True)
class Answers:
    """An artifact's answers to the test split."""

    row: Row
    recall: Recall
    evidence: Evidence
    classes: tuple[str, ...]
    wrong: int
    ece: float
    confidence: float
    matrix: NDArray[np.int64] | None
    """Images by [label, answer]; None for more than `MATRIX_CLASSES` classes."""

    def frequent(self, count: int) -> list[str]:
        """The most frequent confusions in words."""
        return [
            f"{self.classes[label]} taken for {self.classes[answer]} ({images:,})"
            for label, answer, images in self.evidence.confusions[:count]
        ]

    def worst(self, mistake: Mistake) -> str:
        """A mistake in words."""
        label, answer = self.classes[mistake.label], self.classes[mistake.answer]
        return f"image {mistake.image}: {label} taken for {answer} at {mistake.probability:.1%}"


def gather_answers(rows: list[Row], manifest: Manifest) -> list[Answers]:
    """The recorded answers of every artifact that has some.

    Raises:
        PipelineError: for answers to another test split than the packed one, or of other files
            than the compiled ones.
    """
    digest, images = split_digest(manifest), manifest.size("test")
    found = []
    for row in rows:
        file = row.artifact.evidence
        if row.metrics is None or not file.exists():
            continue
        evidence = Evidence.read(file)
        if (evidence.test_digest, evidence.images) != (digest, images):
            what = f"answers to another test split than the one in {PACKED}"
            raise PipelineError(what, where=str(file), fix="run `dvc repro`")
        check_owner(row.artifact, file, evidence.digests)
        found.append(_answers(row, row.metrics.recall, evidence, manifest.classes))
    return found


def _answers(row: Row, recall: Recall, evidence: Evidence, classes: tuple[str, ...]) -> Answers:
    right = evidence.answers()
    matrix = None
    if len(classes) <= MATRIX_CLASSES:
        matrix = np.diag(evidence.count(right))
        for label, answer, images in evidence.confusions:
            matrix[label, answer] = images
    confidences = [one.images * one.confidence for one in evidence.reliability]
    return Answers(
        row=row,
        recall=recall,
        evidence=evidence,
        classes=classes,
        wrong=int((~right).sum()),
        ece=calibration_error(evidence.reliability),
        confidence=sum(confidences) / evidence.images,
        matrix=matrix,
    )


def answers_section(found: list[Answers], rows: list[Row]) -> Section:
    """One row per artifact; dashes for one without recorded answers."""
    by_artifact = {one.row.artifact: one for one in found}
    shown = []
    for row in rows:
        if one := by_artifact.get(row.artifact):
            figures = (f"{one.wrong:,}", f"{one.confidence:.4f}", f"{one.ece:.4f}")
            mistakes = one.evidence.mistakes
            worst = one.worst(mistakes[0]) if mistakes else "none"
            shown.append((row.name, *figures, "; ".join(one.frequent(_TOP)) or "none", worst))
        else:
            shown.append((row.name, *(UNKNOWN,) * 5))
    columns = ("Wrong", "Mean probability", "ECE", "Frequent confusions", "Worst mistake")
    numeric = (False, True, True, True, False, False)
    return Section("Answers", ("Artifact", *columns), numeric, tuple(shown))


def recall_section(one: Answers) -> Section:
    """The classes of the lowest recall, with its 95% interval, the lowest first."""
    rows = tuple(
        {
            "Class": one.classes[i],
            "Images": f"{one.recall.images[i]:,}",
            "Right": f"{one.recall.right[i]:,}",
            "Recall": f"{one.recall.by_class[i]:.4f}",
            "95% of recall": interval(one.recall.by_class[i], one.recall.images[i]),
        }
        for i in one.recall.worst(WORST)
    )
    all_of_them = len(one.classes) <= WORST
    heading = "Recall by class" if all_of_them else f"The {WORST} classes of the lowest recall"
    return Section.of(heading, rows, ("Class",))


def matrix_section(one: Answers) -> Section:
    """One row per label, one column per answer; for many classes the most frequent confusions."""
    if one.matrix is None:
        confused = [
            (one.classes[label], one.classes[answer], f"{images:,}")
            for label, answer, images in one.evidence.confusions[:_LISTED]
        ]
        headings = ("Label", "Answer", "Images")
        return Section("Frequent confusions", headings, (False, False, True), tuple(confused))
    rows = tuple(
        (name, *(f"{count:,}" for count in counts))
        for name, counts in zip(one.classes, one.matrix, strict=True)
    )
    columns = ("Label", *one.classes)
    return Section("Confusion matrix", columns, (False, *(True,) * len(one.classes)), rows)


def reliability_section(one: Answers) -> Section:
    """The reliability diagram as a table."""
    rows = tuple(
        (f"{part.images:,}", f"{part.confidence:.4f}", f"{part.accuracy:.4f}")
        for part in one.evidence.reliability
    )
    columns = ("Images", "Mean probability", "Correct")
    return Section("Reliability", columns, (True, True, True), rows)


def thumbnails(found: list[Answers]) -> dict[int, str]:
    """Every image among the mistakes as a data URI of a PNG, by its index in the test split."""
    places = sorted({mistake.image for one in found for mistake in one.evidence.mistakes})
    images, _ = load_split("test")
    return {place: data_uri(images[place], _THUMBNAIL) for place in places}
