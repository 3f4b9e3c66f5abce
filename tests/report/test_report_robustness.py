"""The report's part on robustness: absent where it is off, else every figure in table and plot."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.records import ARTIFACT_FILE, ArtifactRecord
from pipeline.cli.params import Params
from pipeline.core.errors import PipelineError
from pipeline.report.page import HTML, MARKDOWN, report
from pipeline.report.robustness_section import PLOT, gather_robustness, robustness_plot
from pipeline.robustness.corruptions import CORRUPTIONS
from pipeline.robustness.records import (
    FGSM,
    PGD,
    STUDENT,
    ArtifactRow,
    Limited,
    Measured,
    Protocol,
    RobustnessRecord,
    packed,
    record_file,
)
from tests.report.test_report import STUDENT as NAME
from tests.report.test_report import measured, recorded

__all__ = ["measured", "recorded"]

FLOAT, HALF = Artifact(NAME, "onnxruntime", "fp32"), Artifact(NAME, "tensorrt", "fp16")


def figures(clean: float, mce: Limited | None) -> Measured:
    right = np.full(10, 12)
    return Measured(
        clean=clean,
        corrupted=dict.fromkeys(CORRUPTIONS, (0.5625, 0.4375)),
        mean_corrupted=Limited(value=12 / 16, interval=(0.6789, 0.8123)),
        mce={STUDENT: mce, "resnet": Limited(value=1.625)},
        attacked={FGSM: 0.4, PGD: 0.3},
        right=packed(right),
        withstood=packed(np.arange(10) < 3),
    )


def write(params: Params, **digests: dict[str, str]) -> Params:
    """A record of the workspace's student, whose fp16 artifact was not measured."""
    rows = {}
    for artifact, its in ((FLOAT, figures(0.9, Limited(value=1.0))), (HALF, None)):
        own = ArtifactRecord.read(artifact.folder / ARTIFACT_FILE).digests
        rows[artifact.key] = ArtifactRow(
            status="measured" if its else "not_measured",
            reason=None if its else "no such runtime",
            evaluated_with="onnxruntime 1" if its else None,
            digests=digests.get(artifact.backend, own),
            measured=its,
        )
    RobustnessRecord(
        test_digest="1" * 64, images=10, of_images=30,
        protocol=Protocol(
            seed=17, strengths=(1, 5), corruptions=tuple(CORRUPTIONS), epsilon=8, steps=20,
            step_size=2, restarts=3,
        ),
        versions={}, unrounded={FGSM: 0.4, PGD: 0.25}, student=figures(0.9, Limited(value=1.0)),
        teachers={"resnet": figures(0.8, None)}, artifacts=rows,
    ).write(record_file(NAME))  # fmt: skip
    its = params.robustness.model_copy(update={"enabled": (NAME,)})
    return params.model_copy(update={"robustness": its})


def test_it_is_absent_where_robustness_is_off_and_its_plot_goes(measured: Params) -> None:
    report(write(measured))
    assert PLOT.exists()
    report(measured)  # the record is still there: nobody asks for it
    for file in (MARKDOWN, HTML):
        assert "obustness" not in file.read_text()
    assert not PLOT.exists()


def test_every_network_has_its_figures(measured: Params) -> None:
    report(write(measured))
    for page in (MARKDOWN.read_text(), html.unescape(HTML.read_text())):
        assert "On 10 drawn of 30 test images" in page and "at most 8/255" in page
        assert "the strongest of 3 random starts" in page and "before rounding" in page
        for cell in (f"{NAME} (float)", "resnet (teacher)", "0.7500", "0.6789 to 0.8123", "1.625"):
            assert cell in page
        assert "not measured: no such runtime" in page
        assert "0.562 / 0.438" in page
    (one,) = gather_robustness(write(measured))
    rows = {row[0]: row for row in one.figures().rows}
    assert rows["resnet (teacher)"][6] == "–"  # noqa: RUF001 - no mCE: a dash
    assert set(rows[f"{NAME} TensorRT fp16"][2:]) == {"–"}  # noqa: RUF001
    assert len(one.corruptions().rows) == 3
    assert (
        "[Robustness](" not in MARKDOWN.read_text() and "(robustness.svg)" in MARKDOWN.read_text()
    )
    assert 'href="#robustness"' in HTML.read_text()


def test_the_plot_has_a_line_for_each_measured_network_and_is_the_same_again(
    workspace: Params,
) -> None:
    found = gather_robustness(write(workspace))
    first = robustness_plot(found)
    assert ElementTree.fromstring(first).tag.endswith("svg") and "currentColor" in first
    assert robustness_plot(found) == first
    unmeasured = replace(found[0], lines=found[0].lines[:1])
    assert robustness_plot([unmeasured]) != first


def test_a_record_that_is_missing_or_of_other_artifacts_is_told(measured: Params) -> None:
    params = write(measured, onnxruntime={"model.onnx": "f" * 64})
    with pytest.raises(PipelineError, match="is about other files"):
        report(params)
    record_file(NAME).unlink()
    with pytest.raises(PipelineError, match="there is no RobustnessRecord"):
        report(params)
    assert not Path(MARKDOWN).exists()
