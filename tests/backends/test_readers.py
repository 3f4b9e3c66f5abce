"""Readers of files of anybody agree with the inspections of this project's own artifacts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.backends.base.anatomy import (
    image_layout,
    is_integer,
    product_macs,
    weight_scales,
    written,
)
from pipeline.backends.base.job import Compiled
from pipeline.backends.base.registry import backend, backend_names
from pipeline.cli.inspect.report import FileReport

READING = [name for name in backend_names() if backend(name).reads]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", READING)
def test_a_reader_finds_what_the_inspection_of_an_artifact_found(
    made: Callable[[str, str], tuple[Path, Compiled]], name: str, precision: str
) -> None:
    file, compiled = made(name, precision)
    assert file.suffix in backend(name).reads
    report = FileReport(file, backend(name).reader().read(file, {}))
    assert report.macs == compiled.execution.macs
    assert report.int8_written == pytest.approx(compiled.execution.int8_mac_share)
    if name != "coreml":  # which is not asked what it executes
        assert report.int8_executed == report.int8_written
    per_channel = {None: None, True: "per channel"}[compiled.execution.per_channel]
    assert report.weights == per_channel
    (given,) = report.anatomy.inputs
    assert given.dtype == compiled.execution.input_type and given.layout == "NHWC"


def test_a_suffix_belongs_to_one_backend() -> None:
    suffixes = [suffix for name in READING for suffix in backend(name).reads]
    assert len(suffixes) == len(set(suffixes)) and {".onnx", ".tflite", ".xml"} <= set(suffixes)


@pytest.mark.parametrize(
    ("operands", "precision"),
    [
        (("int8", "int8"), "int8"),
        (("uint8", "int8"), "int8"),
        (("int16", "int8"), "int16x8"),
        (("int8", "int4"), "int8, int4 weights"),
        (("float32", "float32"), "float32"),
        (("float32", "float32", "float16"), "float32, float16 weights"),
        (("float32", "float32", "uint4"), "float32, int4 weights"),
    ],
)
def test_precisions_have_one_name(operands: tuple[str, ...], precision: str) -> None:
    assert written(*operands) == precision
    assert is_integer(precision) == (not operands[0].startswith("float"))


def test_scales_say_per_what_they_are() -> None:
    assert [weight_scales(n, 8) for n in (1, 8, 32)] == ["per tensor", "per channel", "per block"]
    assert weight_scales(1, 1) is None and weight_scales(1, 8, blocks=True) == "per block"


def test_layouts_are_told_where_a_shape_tells_them() -> None:
    assert image_layout((1, 224, 224, 3)) == "NHWC" and image_layout(("?", 3, "h", "w")) == "NCHW"
    assert image_layout((1, 3, 224, 3)) is None and image_layout((1, 1, 1, 1404)) is None
    assert image_layout((1, 64, 56, 56)) is None and image_layout(None) is None


def test_macs_of_an_unknown_size_are_unknown() -> None:
    assert product_macs((2, 3, 4), 5) == 120
    assert product_macs(None, 5) is None and product_macs((2, -1), 5) is None
