"""What the report shows of where the networks look."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pipeline.attribution.agreement import Floats
from pipeline.attribution.examples import Examples
from pipeline.attribution.places import strips
from pipeline.attribution.records import (
    EXAMPLES_FILE,
    MAPS,
    Agreement,
    AttributionRecord,
    Curves,
    Estimate,
    Explained,
    Sanity,
    record_file,
)
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.records import ARTIFACT_FILE, ArtifactRecord
from pipeline.cli.params import Params
from pipeline.compile.evidence import split_digest
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.data.records import PACKED, Manifest
from pipeline.latency.benchmark import benchmark
from pipeline.latency.fingerprint import update_fingerprint
from pipeline.report.attribution_section import overlay
from pipeline.report.page import HTML, MARKDOWN, report
from tests.conftest import SIZE, STUDENT

RNG = np.random.default_rng(2)
HEADING = "Where the networks look"
ARTIFACTS = (Artifact(STUDENT, "onnxruntime", "fp32"), Artifact(STUDENT, "tensorrt", "fp16"))


def agreement(noise: float) -> Agreement:
    maps: Floats = RNG.normal(size=(20, 4, 4))
    return Agreement.of(maps, maps + noise * RNG.normal(size=maps.shape), np.ones(20, bool), 0.5)


def write_record() -> None:
    """A teacher without Grad-CAM, the student, an artifact, one that cannot run, two examples."""
    folder = MAPS / STUDENT
    folder.mkdir(parents=True)
    names = ["teacher resnet", f"student {STUDENT}", ARTIFACTS[0].key]
    images = np.load(PACKED / "test_images.npy")[:2]
    Examples(
        kinds=np.array(["flipped", "right"]), places=np.array([0, 1]), images=images,
        labels=np.array([0, 1]), names=np.array(names),
        maps=RNG.normal(size=(2, 3, 4, 4)).astype(np.float32),
        answers=np.array([[0, 0, 2], [1, 1, 1]]),
        confidence=np.full((2, 3), 0.75, np.float32), strips=strips(SIZE, 4, 0.25),
    ).write(folder / EXAMPLES_FILE)  # fmt: skip
    gain = Estimate(mean=0.2, low=0.1, high=0.3)
    curve = Curves(
        map="occlusion", deletion=gain, deletion_gain=gain, insertion=gain, insertion_gain=gain
    )
    digests = [ArtifactRecord.read(its.folder / ARTIFACT_FILE).digests for its in ARTIFACTS]
    networks = (
        Explained(
            name="resnet", kind="teacher", status="computed", runtime="torch", answered_alike=0.9,
            occlusion=agreement(3.0), gradcam_reason="its last features are 17 tokens and no map",
        ),
        Explained(name=STUDENT, kind="student", status="computed", runtime="torch", constant=3),
        Explained(
            name=ARTIFACTS[0].key, kind="artifact", status="computed", runtime="onnxruntime 1",
            answered_alike=1.0, occlusion=agreement(0.1), curves=(curve,), digests=digests[0],
        ),
        Explained(
            name=ARTIFACTS[1].key, kind="artifact", status="not_computed",
            reason="cannot run here: no NVIDIA GPU here", digests=digests[1],
        ),
    )  # fmt: skip
    sanity = Sanity(
        kind="occlusion", random=(agreement(40.0),), separated=(ARTIFACTS[0].key,),
        mixed_up=("teacher resnet",),
    )  # fmt: skip
    AttributionRecord(
        images=20, minutes=1.25, int8_pearson=None, int8_iou=None, random_pearson=0.1,
        settings=("grid 4", "patch 0.25"),
        drawn=(split_digest(Manifest.read(PACKED / "manifest.json")), "2"),
        networks=networks, sanity=(sanity,),
        digests=((EXAMPLES_FILE, sha256(folder / EXAMPLES_FILE)),),
    ).write(record_file(STUDENT))  # fmt: skip


@pytest.fixture
def explained(workspace: Params) -> Params:
    update_fingerprint()
    benchmark(workspace)
    write_record()
    attribution = workspace.attribution.model_copy(update={"enabled": (STUDENT,)})
    return workspace.model_copy(update={"attribution": attribution})


def test_the_report_tells_where_the_networks_look(explained: Params) -> None:
    report(explained)
    for page in (MARKDOWN.read_text(), HTML.read_text()):
        section = re.split(r"## Latency|<section id=.latency", page.split(HEADING)[1])[0]
        for fact in (
            "20 test images in 1.2 minutes", "not computed: cannot run here: no NVIDIA GPU here",
            "17 tokens and no map", "better than random", "NOT passed for teacher resnet",
            "passed for ONNX Runtime fp32", "random weights 1", "3 maps are constant",
            "0.200 (0.100 to 0.300)",
        ):  # fmt: skip
            assert fact in section, fact
        assert not re.search(r"\bnan\b", re.sub("base64,[^)]*", "", section), re.I)


def test_the_pictures_stand_side_by_side_in_the_page_itself(explained: Params) -> None:
    report(explained)
    page = HTML.read_text()
    flipped, right = re.findall(r'<table class="looks">.*?</table>', page, re.S)
    assert flipped.count("background-image:url(data:image/png;base64,") == 3
    assert flipped.count("--image:url(data:image/png;base64,") == 1
    assert re.findall(r'<b class="(\w+)">(\w+)</b>', flipped) == [
        ("hit", "red"), ("hit", "red"), ("miss", "blue"),
    ]  # fmt: skip
    assert "Flipped" in page.split(flipped)[0] and "miss" not in right
    assert not re.search(r"""(src|href)=["'](?!#)""", page)


def test_without_it_the_report_has_no_such_section(explained: Params) -> None:
    attribution = explained.attribution.model_copy(update={"enabled": ()})
    report(explained.model_copy(update={"attribution": attribution}))
    for page in (MARKDOWN.read_text(), HTML.read_text()):
        assert HEADING not in page and "#attribution" not in page


def test_maps_of_other_artifacts_or_another_split_are_refused(explained: Params) -> None:
    record = AttributionRecord.read(record_file(STUDENT))
    record.model_copy(update={"drawn": ("other", "2")}).write(record_file(STUDENT))
    with pytest.raises(PipelineError, match="another test split"):
        report(explained)
    networks = tuple(
        its.model_copy(update={"digests": {"model.onnx": "0" * 64}}) for its in record.networks
    )
    record.model_copy(update={"networks": networks}).write(record_file(STUDENT))
    with pytest.raises(PipelineError, match="is about other files"):
        report(explained)


def test_damaged_pictures_are_refused(explained: Params) -> None:
    (MAPS / STUDENT / EXAMPLES_FILE).write_bytes(b"no arrays")
    with pytest.raises(PipelineError, match="damaged or of another run"):
        report(explained)


def test_what_speaks_for_the_class_is_orange_and_the_rest_is_seen_through() -> None:
    picture = overlay(np.array([[2.0, 0.0], [-1.0, 0.5]]))
    assert picture.dtype == np.uint8 and picture.shape == (2, 2, 4)
    assert picture[..., 3].tolist() == [[200, 0], [100, 50]]
    assert picture[0, 0, 0] > picture[0, 0, 2] and picture[1, 0, 2] > picture[1, 0, 0]
    assert not overlay(np.zeros((2, 2)))[..., 3].any()
