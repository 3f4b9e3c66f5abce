"""What is recorded of a pruning, beside the pruned network."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.core.records import Record

PRUNING = "pruning.json"
"""In models/pruned/S, beside the card and the weights."""

PLANS = Path(".work/prune")
"""What the steps of an unfinished run removed, so that a stopped run goes on with the same."""


class Cut(Record):
    """One step: how many channels went, and how the network did."""

    share: float = Field(description="of the unpruned network's cost that is left")
    removed: dict[str, int] = Field(description="output channels, by the layer that made them")
    val_top1_cut: float = Field(description="right after the channels went, in float")
    val_top1: float | None = Field(
        None, description="after the learning that followed; null: after the last step, see card"
    )


class Measured(Record):
    """What a network costs on a backend, beside the unpruned one in the same run."""

    backend: str
    precision: str
    kb: float = Field(description="1000 bytes that the runtime opens")
    kb_before: float
    p50_ms: float | None = Field(None, description="of one image; null: not timed")
    p50_ms_before: float | None = None
    p50_share: float | None = Field(None, description="median over rounds of p50 / p50 before")
    p50_share_interval: tuple[float, float] | None = Field(None, description="95% limits")


class Pruning(Record):
    """models/pruned/S/pruning.json: how a student was pruned."""

    target: Literal["macs", "p50", "kb"]
    share: float = Field(description="that was asked for, of the unpruned student's own")
    reached: float = Field(description="the share that is left")
    macs: int
    macs_before: int
    weights: int = Field(description="of the convolutions and linear layers")
    weights_before: int
    measured: Measured | None = Field(None, description="with random inputs; null: target macs")
    steps: tuple[Cut, ...]
    fixed: tuple[str, ...] = Field(description="layers of which no channel can be removed")
    top1_before: float = Field(description="on test, of the unpruned student, in float")
    top1: float = Field(description="on test, in float")
    lost: int = Field(description="test images that only the unpruned student gets right")
    won: int = Field(description="test images that only the pruned one gets right")
    images: int = Field(description="of test")
    versions: dict[str, str] = Field(description="of Torch-Pruning")


class Plan(Record):
    """.work/prune/KEY.json: the units that each step of an unfinished run removed."""

    cuts: tuple[dict[str, tuple[int, ...]], ...] = ()
    aim: float | None = None
    """Share of MACs or weights after the last step, as far as it is known."""
    measured: Measured | None = None
    """With the last step."""
