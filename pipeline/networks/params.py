"""The group `students` of params.yaml, and the networks in `students` and `teachers`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from pipeline.core.params import Group, Name, Names, NoSwitch, Switch, Text, nearest
from pipeline.networks.records import Normalisation

HardSwish = Literal["keep", "relu6"]


class Network(Group):
    """A timm network and how it is changed."""

    arch: Text = Field(description="a timm name")
    args: dict[Text, Any] = Field({}, description="further arguments of timm.create_model")
    stem_stride: Annotated[Literal["auto", 1, 2], NoSwitch] = "auto"
    stem_pool: Literal["auto"] | Switch = "auto"
    hard_swish: HardSwish = Field(
        "keep", description="relu6 takes the place of every hard-swish, before training"
    )
    weights: Text = Field(
        "none",
        description="that training starts from: none, timm (its own), or FILE in `checkpoints`",
    )
    normalisation: Normalisation | None = Field(
        None, description="of a weights file that has no card.json beside it"
    )
    taps: dict[Name, Text] = Field({}, description="tap name: module path in the network")

    @model_validator(mode="after")
    def _weights_lie_inside(self) -> Network:
        if Path(self.weights).is_absolute() or ".." in Path(self.weights).parts:
            raise ValueError("`weights` is none, timm, or the path of a file inside `checkpoints`")
        if self.normalisation is not None and self.weights in ("none", "timm"):
            raise ValueError("`normalisation` belongs to a weights file")
        return self

    @model_validator(mode="after")
    def _normalisation_is_of_pixels(self) -> Network:
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

    @property
    def pretrained(self) -> bool:
        """Whether training starts from weights instead of random numbers."""
        return self.weights != "none"

    def weights_file(self, checkpoints: Path) -> Path | None:
        """The weights file, if `weights` names one."""
        return checkpoints / self.weights if self.weights not in ("none", "timm") else None


class Student(Network):
    """A network that is distilled."""

    recipe: dict[Text, Any] = Field(
        {}, description="of its own, in place of what `views` and `distill` say: see `OwnRecipe`"
    )


class Students(Group):
    """The networks that are distilled: `enabled` are those of `zoo` that the graph makes."""

    enabled: Names = Field(min_length=1)
    zoo: dict[Name, Student]

    @model_validator(mode="after")
    def _enabled_exist(self) -> Students:
        for name in self.enabled:
            if name not in self.zoo:
                raise ValueError(f"`enabled` names `{name}`{nearest(name, self.zoo)}")
        return self


class PrunedStudents(Group):
    """Of the group `prune`, which students ship pruned; all else of it is for `pipeline.prune`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    enabled: Names = ()
