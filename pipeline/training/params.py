"""The group `teachers` of params.yaml, and the recipe of every training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.core.params import (
    Amount,
    Count,
    Fraction,
    Group,
    Location,
    Name,
    Names,
    Positive,
    Seed,
    Selection,
    Switch,
    Text,
    Whole,
    nearest,
)
from pipeline.data.params import Pixels, Views
from pipeline.networks.params import Network
from pipeline.networks.records import Normalisation


class Training(Group):
    """The recipe of a training: optimizer, schedule, regularisation."""

    batch_size: Annotated[Whole, Field(ge=2, le=1_000_000)] = Field(
        description="over all devices together"
    )
    accumulate: Count = Field(
        1, le=500_000, description="parts in which a batch is computed, to save memory"
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    optimizer: Text = Field("sgd", description="a name that timm's optimizer factory knows")
    lr: Positive = Field(le=100)
    momentum: Fraction = 0.9
    weight_decay: Amount = Field(le=100)
    schedule: Text = Field("cosine", description="a name that timm's scheduler factory knows")
    schedule_options: dict[Text, Any] = Field({}, description="further arguments of that factory")
    warmup: Fraction = Field(0.1, description="share of all steps in linear warm-up")
    label_smoothing: Fraction = 0.0
    clip_norm: Annotated[Positive, Field(le=1e6)] | None = None
    ema: Fraction | None = Field(None, description="decay of a moving average of weights")
    tensorboard: Switch = Field(False, description="also write curves for TensorBoard, to .work/")


class Teacher(Group):
    """One teacher: where its weights come from, and how it is trained."""

    source: Literal["train", "checkpoint", "pretrained"]
    checkpoint: Location | None = Field(None, description="a safetensors file in `teachers.folder`")
    normalisation: Normalisation | None = Field(
        None, description="of a checkpoint that has no card.json beside it"
    )
    input_size: Literal["auto"] | Pixels = Field(
        "auto", description="height and width that images are resized to; auto: not resized"
    )
    network: Network
    views: Views
    training: Training

    @model_validator(mode="after")
    def _normalisation_is_of_pixels(self) -> Teacher:
        given = self.normalisation
        fits = given is None or (
            len(given.mean) == len(given.std)
            and len(given.mean) in (1, 3)
            and all(0 <= mean <= 255 for mean in given.mean)
            and all(0 < std <= 255 for std in given.std)
        )
        if not fits:
            raise ValueError(
                "`normalisation` has a mean in [0, 255] and a std in (0, 255] for each of 1 or 3 "
                "channels"
            )
        return self

    @model_validator(mode="after")
    def _checkpoint_is_named(self) -> Teacher:
        if (self.source == "checkpoint") != (self.checkpoint is not None):
            raise ValueError("`checkpoint` is set exactly when `source` is `checkpoint`")
        outside = self.checkpoint and (
            self.checkpoint.is_absolute() or ".." in self.checkpoint.parts
        )
        if outside:
            raise ValueError("`checkpoint` is a path inside `teachers.folder`")
        return self


class Teachers(Group):
    """The teachers of all students. The logits of several teachers are combined into one."""

    overridable: ClassVar[bool] = True
    graph_keys: ClassVar[tuple[str, ...]] = ("enabled", "folder")

    enabled: Names = Field(min_length=1)
    folder: Location = Field(description="checkpoints of your own; DVC notices a change in it")
    combine: Literal["mean", "best"] = Field(
        "mean", description="of logits: weighted mean, or the best teacher for each image"
    )
    weights: dict[Name, Annotated[Positive, Field(ge=1e-6, le=1e6)]] = Field(
        {}, description="in the mean, by teacher; 1 by default"
    )
    zoo: dict[Name, Teacher]

    @model_validator(mode="after")
    def _enabled_exist(self) -> Teachers:
        for name in self.enabled:
            if name not in self.zoo:
                raise ValueError(f"`enabled` names `{name}`{nearest(name, self.zoo)}")
        for name in self.weights:
            if name not in self.enabled:
                raise ValueError(f"`weights` names `{name}`{nearest(name, self.enabled)}")
        if self.weights and self.combine == "best":
            raise ValueError("`weights` belong to `combine: mean`")
        return self

    def checkpoint_file(self, name: str) -> Path | None:
        """The checkpoint that a teacher starts from, if it has one."""
        checkpoint = self.zoo[name].checkpoint
        return None if checkpoint is None else self.folder / checkpoint


class TeacherParams(Selection):
    """What the stage `train_teacher` reads."""

    seed: Seed
    teachers: Teachers
