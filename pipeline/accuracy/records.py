"""What is recorded about an artifact's answers."""

from __future__ import annotations

from pydantic import Field

from pipeline.core.records import Record


class ReliabilityBin(Record):
    """Images whose most probable class has a probability in one of equal parts of [0, 1]."""

    images: int
    confidence: float = Field(description="mean of these probabilities")
    accuracy: float = Field(description="share of right answers")


class Mistake(Record):
    """A test image with a wrong answer; classes are places in the manifest's."""

    image: int
    label: int
    answer: int
    probability: float = Field(description="that the softmax gives to `answer`")
