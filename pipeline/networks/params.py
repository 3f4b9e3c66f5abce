"""The group `students` of params.yaml, and the networks in `students` and `teachers`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.core.params import Group, Name, Names, NoSwitch, Switch, Text, nearest

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
    taps: dict[Name, Text] = Field({}, description="tap name: module path in the network")


class Students(Group):
    """The networks that are distilled: `enabled` are those of `zoo` that the graph makes."""

    enabled: Names = Field(min_length=1)
    zoo: dict[Name, Network]

    @model_validator(mode="after")
    def _enabled_exist(self) -> Students:
        for name in self.enabled:
            if name not in self.zoo:
                raise ValueError(f"`enabled` names `{name}`{nearest(name, self.zoo)}")
        return self
