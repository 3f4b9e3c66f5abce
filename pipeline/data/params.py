"""The groups `data` and `views` of params.yaml."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from pipeline.core.params import Count, Fraction, Group, Positive, Seed, Selection


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
    graph_keys: ClassVar[tuple[str, ...]] = ("folder",)

    source: str = Field(description="the name of a registered source: torchvision, folder, ...")
    name: str = Field(description="which set of the source; of torchvision.datasets, a class")
    options: dict[str, Any] = Field({}, description="further arguments of the source")
    folder: Annotated[Path, AfterValidator(_usable)] = Field(
        description="an ImageFolder, or archives that are already at hand"
    )
    image_size: Literal["auto"] | Annotated[int, Field(ge=8, le=1024)] = "auto"
    channels: Literal["auto", 1, 3] = "auto"
    val_fraction: Annotated[float, Field(gt=0, le=0.5)]
    test_fraction: Annotated[float, Field(gt=0, le=0.5)]
    max_rejected: Fraction = Field(description="share of broken files that stops the run")
    calibration_images: Count
    limit: Count | None = Field(None, description="keep at most so many images per split")


class Augment(Group):
    """How a view may differ from its image. Everything is drawn per sample."""

    flip: bool = Field(True, description="mirror left-right with probability 1/2")
    shift: Annotated[int, Field(ge=0)] = Field(1, description="largest shift in pixels")
    crop: Positive | None = Field(
        None, le=1, description="smallest share of the area that a random resized crop keeps"
    )
    trivial: bool = Field(False, description="TrivialAugment: one random operation an image")
    erase: Fraction = Field(0.0, description="probability of erasing a rectangle")
    mixup: Annotated[float, Field(ge=0)] = Field(0.0, description="alpha of MixUp; 0: none")
    cutmix: Annotated[float, Field(ge=0)] = Field(0.0, description="alpha of CutMix; 0: none")


class Views(Group):
    """The views of the train images that a network sees; `auto` becomes a `ViewPlan`."""

    overridable: ClassVar[bool] = True

    epochs: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        "auto", description="0: the network is not trained"
    )
    augment: Literal["auto"] | Augment = "auto"


class ViewPlan(Group):
    """`Views` with nothing left to be found."""

    epochs: Annotated[int, Field(ge=0)]
    augment: Augment


class FetchParams(Selection):
    """What the stage `fetch` reads."""

    data: Data


class PrepareParams(FetchParams):
    """What the stage `prepare` reads."""

    seed: Seed
