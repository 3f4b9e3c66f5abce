"""What is recorded about where the networks look."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.attribution.agreement import Floats, interval, overlap, pearson, ssim
from pipeline.core.records import METRICS, Record

ATTRIBUTION = METRICS / "attribution"
"""A record for each student, beside a README."""

MAPS = Path("models/attribution")
"""A folder for each student."""

MAPS_FILE, EXAMPLES_FILE = "maps.npz", "examples.npz"

_UNDEFINED = 2.0
"""In place of a correlation."""

Kind = Literal["teacher", "student", "artifact"]
MapKind = Literal["occlusion", "Grad-CAM"]
Status = Literal["computed", "not_computed", "failed"]


def title(kind: Kind, name: str) -> str:
    """A network in messages and tables: a teacher and a student may have the same name."""
    return name if kind == "artifact" else f"{kind} {name}"


def record_file(student: str) -> Path:
    """The `AttributionRecord` of a student."""
    return ATTRIBUTION / f"{student}.json"


class Estimate(Record):
    """A mean over images, with its 95% bootstrap interval."""

    mean: float
    low: float | None = Field(description="null for a single image")
    high: float | None

    @classmethod
    def of(cls, values: Floats) -> Self | None:
        """Of the values [N] that are numbers; None without any."""
        known = values[~np.isnan(values)]
        if not len(known):
            return None
        low, high = interval(known) or (None, None)
        return cls(mean=float(known.mean()), low=low, high=high)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


class Agreement(Record):
    """How alike two networks' maps of the same kind are, over the images."""

    images: int = Field(description="in which both maps have some variance, so that they compare")
    undefined: int = Field(description="the other images")
    pearson: Estimate | None = Field(description="correlation over the positions of a map")
    ssim: Estimate | None
    iou: Estimate | None = Field(description="of the fifth of the positions with largest values")
    same_answers: int = Field(description="of `images`, those to which both give the same answer")
    other_reason: int = Field(
        description="of `same_answers`, those with a Pearson correlation below the limit"
    )

    @classmethod
    def of(cls, a: Floats, b: Floats, same: NDArray[np.bool_], limit: float) -> Self:
        """The agreement of maps [N, G, G].

        Args:
            a: maps.
            b: others.
            same: whether both networks give the same answer, [N].
            limit: of Pearson's correlation.
        """
        correlations = pearson(a, b)
        defined = ~np.isnan(correlations)
        return cls(
            images=int(defined.sum()),
            undefined=int((~defined).sum()),
            pearson=Estimate.of(correlations),
            ssim=Estimate.of(ssim(a, b)),
            iou=Estimate.of(overlap(a, b)),
            same_answers=int((same & defined).sum()),
            other_reason=int((same & defined & (correlations < limit)).sum()),
        )


class Curves(Record):
    """Deletion and insertion by one kind of map; see `occlusion.removal_areas`."""

    map: MapKind
    deletion: Estimate = Field(description="area under the curve; small for a map that tells")
    deletion_gain: Estimate = Field(description="that of a random map, minus this one, by image")
    insertion: Estimate = Field(description="area under the curve; large for a map that tells")
    insertion_gain: Estimate = Field(description="this one, minus that of a random map, by image")

    @property
    def better_than_random(self) -> bool:
        """Whether both gains are above 0 with their whole intervals."""
        lows = (self.deletion_gain.low, self.insertion_gain.low)
        return all(low is not None and low > 0 for low in lows)


class Explained(Record):
    """One network: where it looks, compared with the float student."""

    name: str = Field(description="of the teacher or student; of an artifact S/B/P")
    kind: Kind
    status: Status
    reason: str | None = Field(None, description="why there are no maps")
    runtime: str | None = Field(None, description="torch, or the artifact's runtime and version")
    digests: dict[str, str] = Field({}, description="of an artifact: SHA-256 of its files")
    answered_alike: float | None = Field(
        None, description="share of the images with the float student's answer"
    )
    constant: int = Field(0, description="occlusion maps without any variance")
    occlusion: Agreement | None = Field(None, description="with the float student's maps")
    gradcam: Agreement | None = Field(None, description="with the float student's maps")
    gradcam_layer: str | None = Field(None, description="whose features are weighted, and its size")
    gradcam_reason: str | None = Field(None, description="why there is no Grad-CAM")
    curves: tuple[Curves, ...] = ()
    by_image: str = Field(
        "",
        description="of an artifact: Pearson's correlation of each image's occlusion maps, base64 "
        "of float16 in the order of the drawn images; 2 where it is undefined",
    )

    @model_validator(mode="after")
    def _correlations_are_readable(self) -> Self:
        try:
            odd = len(base64.b64decode(self.by_image, validate=True)) % 2
        except binascii.Error as error:
            raise ValueError(f"`by_image` is not base64: {error}") from None
        if odd:
            raise ValueError("`by_image` does not hold float16")
        return self

    def correlations(self) -> Floats:
        """Of each image, float64 [N]; NaN where it is undefined."""
        values = np.frombuffer(base64.b64decode(self.by_image), "<f2").astype(np.float64)
        return np.where(values == _UNDEFINED, np.nan, values)


def packed(correlations: Floats) -> str:
    """`Explained.by_image` of correlations [N], NaN where they are undefined."""
    values = np.where(np.isnan(correlations), _UNDEFINED, correlations)
    return base64.b64encode(values.astype("<f2").tobytes()).decode()


class Sanity(Record):
    """Whether the maps depend on what was learned: Adebayo et al. (arXiv 1810.03292)."""

    kind: MapKind
    random: tuple[Agreement, ...] = Field(
        description="of the float student and students with other random weights"
    )
    separated: tuple[str, ...] = Field(
        description="networks whose Pearson correlation is above those of all random students, "
        "interval by interval"
    )
    mixed_up: tuple[str, ...] = Field(description="the others, which the maps do not tell apart")


class AttributionRecord(Record):
    """metrics/attribution/S.json.

    The few figures at the top are what `dvc metrics show` prints, which shows none in lists.
    """

    images: int
    minutes: float = Field(description="of the whole stage")
    int8_pearson: float | None = Field(
        description="the lowest mean of an int8 artifact, on occlusion maps; null without any"
    )
    int8_iou: float | None = Field(description="likewise")
    random_pearson: float | None = Field(
        description="the highest mean of a student with random weights, on occlusion maps"
    )
    settings: tuple[str, ...] = Field(
        description="what maps have to share to be compared: grid, patch, seed, limit"
    )
    drawn: tuple[str, ...] = Field(description="SHA-256 of the test split and of the images drawn")
    networks: tuple[Explained, ...] = Field(description="teachers, the float student, artifacts")
    sanity: tuple[Sanity, ...] = Field(description="by kind of map")
    digests: tuple[tuple[str, str], ...] = Field(
        description="file in models/attribution/S and its SHA-256"
    )

    def artifact(self, key: str) -> Explained | None:
        """What is recorded about the artifact S/B/P."""
        found = (its for its in self.networks if its.kind == "artifact" and its.name == key)
        return next(found, None)
