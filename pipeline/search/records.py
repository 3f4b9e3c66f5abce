"""What a search keeps in the folder search/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.core.records import Record
from pipeline.search.params import Target

FOLDER = Path("search")
"""Of one search; not kept in git."""

DATA = FOLDER / "data"
CATALOGUE = FOLDER / "catalogue"
TRIALS = FOLDER / "trials"
RECORDINGS = FOLDER / "recordings"
JOURNAL = FOLDER / "journal.log"
RESULT = "result.json"
"""In a rung's folder, when it is finished."""

CANDIDATE = "candidate"
"""The name of the student in the folder of a trial."""


class Probe(Record):
    """search/catalogue/KEY.json: what an untrained network costs on a backend."""

    failure: str | None = Field(None, description="why it cannot be compiled or measured")
    kb: float | None = None
    int8_mac_share: float | None = None
    p50_ms: float | None = None
    ratio: float | None = Field(None, description="of its p50 to the frozen reference's")
    ratio_interval: tuple[float, float] | None = Field(None, description="95% limits")
    seconds: float = Field(description="that it took")

    def broken(self, target: Target) -> str | None:
        """Why the network cannot reach the target whatever it learns; None where it can."""
        if self.failure is not None:
            return self.failure
        assert self.kb is not None
        if target.max_kb is not None and self.kb > target.max_kb:
            return f"{self.kb:,.0f} kB, more than {target.max_kb:,.0f}"
        limits = [
            (self.ratio, target.max_ratio, "{:.2f} times the reference's p50, more than {:.2f}"),
            (self.p50_ms, target.max_p50_ms, "p50 {:.3f} ms, more than {:.3f}"),
        ]
        for value, most, text in limits:
            if value is not None and most is not None and value > most:
                return text.format(value, most)
        return None


class RungResult(Record):
    """search/trials/N/RUNG/result.json: a trained candidate, by the target's own runtime on val."""

    epochs: int
    top1: float
    balanced: float
    float_top1: float
    kb: float
    int8_mac_share: float
    seconds: float = Field(description="of this training, its compilation and evaluation")


class Identity(Record):
    """What a study is of: where any of it differs, its trials are not comparable."""

    space: str
    target: str
    params: str
    data: str
    teachers: str
    code: str
    machine: str

    def differing(self, other: Identity) -> list[str]:
        """The names of what differs."""
        mine: dict[str, Any] = self.model_dump()
        return [name for name, value in other.model_dump().items() if mine[name] != value]
