"""Values that a device's result may hold: bounded, and safe to show in a terminal or on a page."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from pipeline.core.records import Record
from pipeline.latency.records import Latency, Throughput, WarmUp

LONGEST_LABEL = 200
LONGEST_PROSE = 1000
"""Letters. The scripts of a bundle cut what a runtime says at as many."""

_EMULATED = {"QEMU": "QEMU", "VirtualApple": "Rosetta"}
"""Emulators by what they call their CPU."""

_X86_NAMES = re.compile(r"\b(Intel|AMD|Xeon|Ryzen|EPYC|GenuineIntel|AuthenticAMD)\b")
_X86 = re.compile("x86|AMD64|i[3-6]86")


def one_line(text: str, most: int = LONGEST_PROSE) -> str:
    """`text` in one line of at most `most` letters, without what a terminal or a page obeys.

    Control characters, escape sequences, marks that turn the direction of writing and letters
    that are not shown become U+FFFD.
    """
    words = " ".join(text[: 10 * most].split())
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in words)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _label(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds characters that are not shown")
    return text


def _prose(text: Any) -> Any:
    return one_line(text) if isinstance(text, str) else text


Label = Annotated[str, Field(max_length=LONGEST_LABEL), AfterValidator(_label)]
"""A name or a version, in one line."""
Prose = Annotated[str, BeforeValidator(_prose)]
"""What a script or a runtime says; it is made one line, see `one_line`."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$", max_length=100)]
"""Of a student, a backend or a precision, and a part of a file's name."""
Versions = Annotated[dict[Label, Label], Field(min_length=1, max_length=10)]
"""Version by package."""

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)]
"""Up to three hours."""
LoadMilliseconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
Megabytes = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
"""A difference, which may be negative."""
Threads = Annotated[int, Field(ge=1, le=2**16)]
Counted = Annotated[int, Field(ge=1, le=10**9)]


class Machine(Record):
    """common.py's record of a machine, phone.py's of a phone, or that of a page in a browser.

    What is not set stays out of the file: the record's digest is part of the device's name.
    """

    cpu: Label | None = None
    model: Label | None = None
    soc: Label | None = None
    architecture: Label | None = None
    cores: Threads | None = None
    system: Label | None = None
    android: Label | None = None
    kernel: Label | None = None
    governor: Label | None = None
    python: Label | None = None
    numpy: Label | None = None
    emulator: Label | None = Field(None, description="what emulates the CPU, if a script found one")
    browser: Label | None = Field(None, description="in which the page ran; it tells no CPU")
    browser_version: Label | None = None

    @model_validator(mode="after")
    def _is_named(self) -> Self:
        if not (self.model or self.cpu or self.browser):
            raise ValueError("neither `cpu` nor `model` says which device it is")
        if (self.browser is None) != (self.browser_version is None):
            raise ValueError("`browser` and `browser_version` belong together")
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key in self.model_fields_set}

    @property
    def name(self) -> str:
        """A phone's model and chip, otherwise the CPU or the board; a browser before it."""
        chip = self.soc or self.cpu
        if self.browser:
            system = " ".join(filter(None, (self.system, self.architecture)))
            return " on ".join(filter(None, (self.browser, self.model or chip or system)))
        if self.model:
            return f"{self.model} ({chip})" if chip else self.model
        return str(self.cpu)

    @property
    def emulated_by(self) -> str | None:
        """What emulates this CPU; null for a real one.

        Bundles of earlier versions did not look for it. Their results name QEMU's CPU, or an x86
        CPU, the host's, beside another architecture.
        """
        for mark, emulator in _EMULATED.items():
            if mark in (self.cpu or ""):
                return emulator
        foreign = self.architecture and not _X86.match(self.architecture)
        if foreign and _X86_NAMES.search(self.cpu or ""):
            return "a CPU of another kind"
        return self.emulator


class DeviceWarmUp(WarmUp):
    """A warm-up on a device."""

    inferences: Counted


class DeviceThroughput(Throughput):
    """Images per second of a device."""

    images_per_second: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
    batch: Counted
    threads: Threads


class DeviceLatency(Latency):
    """Milliseconds per inference of one image on a device; they rise from p50 to p99."""

    p50: Milliseconds
    p90: Milliseconds
    p99: Milliseconds

    @model_validator(mode="after")
    def _rise(self) -> Self:
        if not self.p50 <= self.p90 <= self.p99:
            raise ValueError("the percentiles do not rise from p50 to p99")
        return self


class PhoneLatency(Record):
    """Milliseconds per inference, as the phone's tool prints them."""

    mean: Milliseconds
    p50: Milliseconds | None = None
    p5: Milliseconds | None = None
    p95: Milliseconds | None = None
    min: Milliseconds
    max: Milliseconds

    @model_validator(mode="after")
    def _rise(self) -> Self:
        times = [self.min, self.p5, self.p50, self.p95, self.max]
        known = [time for time in times if time is not None]
        if known != sorted(known) or not self.min <= self.mean <= self.max:
            raise ValueError("the times do not rise from min to max")
        return self


class Delegate(Record):
    """How many of a graph's operators a delegate took, in how many partitions."""

    delegate: Label
    operators: Annotated[int, Field(ge=0, le=10**6)]
    of: Annotated[int, Field(ge=0, le=10**6)]
    partitions: Annotated[int, Field(ge=0, le=10**6)]

    @model_validator(mode="after")
    def _are_parts(self) -> Self:
        if self.operators > self.of:
            raise ValueError("more operators are taken than there are")
        return self
