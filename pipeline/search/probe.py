"""What a candidate costs, known before it is trained: its size, int8 share and latency."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backends.base.job import opened_bytes
from pipeline.backends.base.registry import backend
from pipeline.backends.base.spec import versions
from pipeline.compile.params import CompileParams
from pipeline.compile.untrained import Shape, compile_one, untrained
from pipeline.core.errors import PipelineError
from pipeline.latency.benchmark import reference_target
from pipeline.latency.params import Benchmark
from pipeline.latency.records import Fingerprint
from pipeline.latency.rounds import measure
from pipeline.latency.workers import Target as Timed
from pipeline.networks.params import Student
from pipeline.search.params import Target
from pipeline.search.records import CANDIDATE, CATALOGUE, Probe

ROUNDS = 7
"""Interleaved with the reference. A latency near its limit is measured again with more."""
AGAIN = 4
"""Times as many, where the limit lies inside the interval."""


def network_of(student: Student) -> dict[str, Any]:
    """What decides how fast and large a student is, whatever it learns."""
    return student.model_dump(mode="json", exclude={"recipe", "taps", "weights", "normalisation"})


def probe(
    student: Student,
    target: Target,
    params: CompileParams,
    opset: int,
    shape: Shape,
    machine: Fingerprint,
    threads: int,
) -> Probe:
    """What the untrained network costs: from the catalogue, or compiled and timed now.

    Weights hardly change size, int8 share and latency. A network that cannot be exported or
    compiled is known as well.

    Args:
        student: the network; its recipe does not matter.
        target: which backend and precision, and what it must not exceed.
        params: backends and `quantize.min_int8_share`.
        opset: of the ONNX file.
        shape: of images and logits.
        machine: this one.
        threads: that one image is computed with.
    """
    settings = params.backends.settings(target.backend)
    parts = [
        network_of(student),
        settings.model_dump(mode="json"), params.quantize.min_int8_share, opset,
        [shape.image_size, shape.channels, shape.classes],
        target.backend, target.precision, versions(backend(target.backend).packages),
        machine.model_dump(), threads,
    ]  # fmt: skip
    text = json.dumps(parts, sort_keys=True)
    file = CATALOGUE / f"{student.arch}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if file.exists():
        return Probe.read(file)
    start = time.monotonic()
    try:
        found = _measure(student, target, params, opset, shape, threads)
    except PipelineError as error:
        found = Probe(failure=error.what, seconds=0)
    found = found.model_copy(update={"seconds": round(time.monotonic() - start, 1)})
    found.write(file)
    return found


def _measure(
    student: Student,
    target: Target,
    params: CompileParams,
    opset: int,
    shape: Shape,
    threads: int,
) -> Probe:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for name in ("student", "artifact", "images"):
            (place / name).mkdir()
        exported = untrained(CANDIDATE, student, shape, opset, place / "student")
        compiler = backend(target.backend).compiler(params.backends.settings(target.backend))
        least = params.quantize.min_int8_share
        compiled, _ = compile_one(
            exported, target.backend, compiler, target.precision, least, place / "artifact"
        )
        model = place / "artifact" / compiled.model_file
        found = Probe(
            kb=opened_bytes(model) / 1000,
            int8_mac_share=compiled.execution.int8_mac_share,
            seconds=0,
        )
        if not target.timed:
            return found
        images = place / "images" / "images.npy"
        np.save(images, exported.job.calibration)
        timed = [
            reference_target(place / "images"),
            Timed(CANDIDATE, target.backend, model, images),
        ]
        found = _timed(timed, found, ROUNDS, threads)
        limit = target.max_ratio
        if limit is None and found.ratio is not None and found.p50_ms is not None:
            assert target.max_p50_ms is not None
            limit = found.ratio * target.max_p50_ms / found.p50_ms
        if found.ratio_interval and limit:
            low, high = found.ratio_interval
            if low < limit < high:
                found = _timed(timed, found, ROUNDS * AGAIN, threads)
        return found


def _timed(timed: list[Timed], found: Probe, rounds: int, threads: int) -> Probe:
    settings = Benchmark(
        threads=threads,
        rounds=rounds,
        extra_rounds=rounds // 2,
        min_runs=10,
        min_seconds=0.03,
        batch=0,
    )
    row = measure(timed, settings, seed=0).rows[CANDIDATE]
    if row.latency_ms is None:
        return found.model_copy(update={"failure": row.reason})
    changes = {
        "p50_ms": row.latency_ms.p50,
        "ratio": row.ratio_to_reference,
        "ratio_interval": row.ratio_interval,
    }
    return found.model_copy(update=changes)
