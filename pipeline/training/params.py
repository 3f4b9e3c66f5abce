"""The group `teachers` of params.yaml, and the recipe of every training."""

from __future__ import annotations

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
    Real,
    Seed,
    Selection,
    Switch,
    Text,
    Whole,
    nearest,
)
from pipeline.data.params import Pixels, Views
from pipeline.networks.params import Network

Freeze = Literal["none", "head_first", "backbone"]
BatchNorm = Literal["train", "frozen"]
Balance = Literal["none", "sampling", "logit_adjusted"]

BatchSize = Annotated[Whole, Field(ge=2, le=1_000_000)]
Rate = Annotated[Positive, Field(le=100)]
Decay = Annotated[Amount, Field(le=100)]
LayerDecay = Annotated[Real, Field(gt=0, le=1)]

Auto = Literal["auto"]
"""Found from the data and the weights by `training.auto`, whose rules are in docs/own-images.md."""


class Regularisation(Group):
    """What a recipe never leaves to `auto`."""

    accumulate: Count = Field(
        1,
        le=500_000,
        description="parts in which a batch is computed, to save memory; batch norm takes its "
        "statistics from each",
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    cuda_graph: Switch = Field(
        False,
        description="on one GPU, replay a step as one CUDA graph; elsewhere it changes nothing",
    )
    optimizer_options: dict[Text, Switch | Real] = Field(
        {}, description="further arguments of timm's optimizer"
    )
    momentum: Fraction = 0.9
    schedule: Text = Field("cosine", description="a name that timm's scheduler factory knows")
    schedule_options: dict[Text, Any] = Field({}, description="further arguments of that factory")
    label_smoothing: Fraction = 0.0
    clip_norm: Annotated[Positive, Field(le=1e6)] | None = None
    ema: Fraction | None = Field(None, description="decay of a moving average of weights")
    max_hours: Annotated[Positive, Field(le=10_000)] | None = Field(
        None, description="a training that would take longer is refused after its first two steps"
    )
    tensorboard: Switch = Field(False, description="also write curves for TensorBoard, to .work/")


class Recipe(Regularisation):
    """The recipe of a training in which every `auto` has been replaced."""

    batch_size: BatchSize
    optimizer: Text = "sgd"
    lr: Rate
    weight_decay: Decay
    warmup: Fraction = 0.1
    layer_decay: LayerDecay = 1.0
    freeze: Freeze = "none"
    batch_norm: BatchNorm = "train"
    balance: Balance = "none"


class Training(Regularisation):
    """A recipe as params.yaml has it; what says `auto` becomes a number in a `Recipe`."""

    batch_size: Auto | BatchSize = Field("auto", description="over all devices together")
    optimizer: Text = Field("auto", description="auto, or a name that timm's factory knows")
    lr: Auto | Rate = "auto"
    weight_decay: Auto | Decay = "auto"
    warmup: Auto | Fraction = Field("auto", description="share of all steps in linear warm-up")
    layer_decay: Auto | LayerDecay = Field(
        "auto", description="each layer learns by this factor slower than the next; 1: all alike"
    )
    freeze: Auto | Freeze = Field(
        "auto",
        description="head_first: the classifier is fitted on the frozen backbone before all layers "
        "learn; backbone: it alone ever learns; none",
    )
    batch_norm: Auto | BatchNorm = Field(
        "auto",
        description="train: normalise by each batch's statistics, and average them; frozen: keep "
        "and use those of the weights",
    )
    balance: Auto | Balance = Field(
        "auto",
        description="sampling: every class equally often; logit_adjusted: cross entropy that "
        "expects the classes' shares of train; none",
    )


class Consistency(Group):
    """How a teacher learns from images without labels (FixMatch, arXiv 2001.07685)."""

    weight: Annotated[Positive, Field(le=1e6)] = Field(1.0, description="of its loss")
    threshold: Fraction = Field(
        0.95, description="probability from which an own answer teaches the strongly changed view"
    )


class TeacherViews(Views):
    """The views of a teacher, who learns most from labels."""

    most_unlabelled: ClassVar[float] = 1 / 2


class Teacher(Group):
    """One teacher: its network, and how it is trained."""

    input_size: Literal["auto"] | Pixels = Field(
        "auto", description="height and width that images are resized to; auto: not resized"
    )
    network: Network
    views: TeacherViews
    training: Training = Training()
    consistency: Consistency = Consistency()


class Teachers(Group):
    """The teachers of all students. The logits of several teachers are combined into one."""

    overridable: ClassVar[bool] = True
    graph_keys: ClassVar[tuple[str, ...]] = ("enabled",)

    enabled: Names = Field(min_length=1)
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


class TeacherParams(Selection):
    """What the stage `train_teacher` reads."""

    seed: Seed
    checkpoints: Location = Field(description="folder of weights files; DVC notices a change in it")
    teachers: Teachers
