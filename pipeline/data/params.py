"""The groups `data` and `views` of params.yaml."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from pipeline.core.params import (
    Amount,
    Count,
    Fraction,
    Group,
    Location,
    NoSwitch,
    Positive,
    Real,
    Seed,
    Selection,
    Switch,
    Text,
    Whole,
)

Epochs = Annotated[Whole, Field(ge=0, le=100_000)]
"""0: the network is not trained."""

Pixels = Annotated[Whole, Field(ge=8, le=1024)]

UNLABELLED = Path("data/unlabelled")
"""The project's own folder of images without labels, which may be empty."""


def _usable(folder: Path) -> Path:
    """Refuse a folder that holds data/raw or lies in it: `fetch` would depend on its own output."""
    try:
        folder.is_dir()
    except OSError as error:
        raise ValueError(f"the folder cannot be read: {error.strerror}") from None
    here, output = (Path(os.path.realpath(path)) for path in (folder, "data/raw"))
    if output.is_relative_to(here) or here.is_relative_to(output):
        raise ValueError(
            "name a folder of images that neither holds data/raw nor lies in it; "
            "an empty name is the whole project"
        )
    return folder


class Data(Group):
    """Which images, and how they are packed."""

    overridable: ClassVar[bool] = True
    graph_keys: ClassVar[tuple[str, ...]] = ("folder", "unlabelled")

    source: Text = Field(description="the name of a registered source: torchvision, folder, ...")
    name: Text = Field(description="which set of the source; of torchvision.datasets, a class")
    options: dict[str, Any] = Field({}, description="further arguments of the source")
    folder: Annotated[Location, AfterValidator(_usable)] = Field(
        description="an ImageFolder, or archives that are already at hand"
    )
    unlabelled: Annotated[Location, AfterValidator(_usable)] = Field(
        UNLABELLED, description="images without labels, in any folders"
    )
    labels: Count | None = Field(
        None, description="keep so many labels of each class; the rest of train is unlabelled"
    )
    image_size: Literal["auto"] | Pixels = "auto"
    stored_size: Literal["auto", "same"] | Pixels = Field(
        "auto",
        description="what shorter sides are resized to; networks see the centre of `image_size`",
    )
    channels: Annotated[Literal["auto", 1, 3], NoSwitch] = "auto"
    val_fraction: Annotated[Real, Field(gt=0, le=0.5)]
    test_fraction: Annotated[Real, Field(gt=0, le=0.5)]
    max_rejected: Fraction = Field(description="share of broken files that stops the run")
    calibration_images: Annotated[Count, Field(le=1_000_000)]
    limit: Count | None = Field(None, description="keep at most so many images per split")


class Rand(Group):
    """RandAugment (arXiv 1909.13719): some operations one after another, all equally strong."""

    operations: Annotated[Whole, Field(ge=1, le=8)] = Field(2, description="per image")
    magnitude: Annotated[Whole, Field(ge=0, le=30)] = 9


class Augment(Group):
    """How a view may differ from its image. Everything is drawn per sample."""

    flip: Switch = Field(
        True, description="mirror left-right in every other epoch, at first with probability 1/2"
    )
    shift: Annotated[Whole, Field(ge=0, le=1024)] = Field(1, description="largest shift in pixels")
    crop: Positive | None = Field(
        None, le=1, description="smallest share of the area that a random resized crop keeps"
    )
    trivial: Switch = Field(False, description="TrivialAugment: one random operation an image")
    rand: Rand | None = Field(None, description="RandAugment")
    erase: Fraction = Field(0.0, description="probability of erasing a rectangle")
    mixup: Amount = Field(0.0, le=100, description="alpha of MixUp; 0: none")
    cutmix: Amount = Field(0.0, le=100, description="alpha of CutMix; 0: none")


class Views(Group):
    """The views of the train images that a network sees; `auto` becomes a `ViewPlan`."""

    overridable: ClassVar[bool] = True

    epochs: Literal["auto"] | Epochs = "auto"
    augment: Literal["auto"] | Augment = "auto"
    unlabelled: Literal["auto"] | Fraction = Field(
        "auto", description="share of an epoch's images that have no labels"
    )
    most_unlabelled: ClassVar[float] = 7 / 8
    """What `unlabelled: auto` is at most; less where there are fewer such images."""


class ViewPlan(Group):
    """`Views` with nothing left to be found."""

    epochs: Epochs
    augment: Augment


class FetchParams(Selection):
    """What the stage `fetch` reads."""

    data: Data


class PrepareParams(FetchParams):
    """What the stage `prepare` reads."""

    seed: Seed
