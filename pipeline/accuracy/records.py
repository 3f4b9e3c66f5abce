"""What is recorded about an artifact's answers."""

from __future__ import annotations

from pydantic import Field

from pipeline.core.records import Record


class ReliabilityBin(Record):
    """A bin of the reliability diagram: images by the probability of their answer."""

    images: int
    confidence: float = Field(description="mean of these probabilities")
    accuracy: float = Field(description="share of right answers")


class Mistake(Record):
    """A test image with a wrong answer."""

    image: int = Field(description="its index in the test split")
    label: int = Field(description="index of a class in the manifest")
    answer: int = Field(description="index of a class in the manifest")
    probability: float = Field(description="that the softmax gives to `answer`")
