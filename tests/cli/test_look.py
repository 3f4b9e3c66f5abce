"""The page of `look`: what it shows of two classes and of a hundred. It is safe to open."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from pipeline.cli.commands import main
from pipeline.cli.look import page as look_page
from pipeline.cli.look.page import PAGE, look
from pipeline.cli.params import Params, load_params
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.data.prepare import prepare, settings_digest
from pipeline.data.recall import too_small
from pipeline.data.records import MANIFEST, PACKED, SPLITS, Manifest, Origin
from pipeline.data.sources import fetch
from pipeline.distill.recording import student_views
from tests.conftest import PARAMS
from tests.data.test_duplicates import encoded, picture

EVIL = "<img src=x onerror='alert(1)'>"
"""A class, and a part of a file's name."""


def write_params(**data: Any) -> Params:
    tree = yaml.safe_load(PARAMS.read_text())
    tree["data"] |= data
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    return load_params()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with packed photos of two classes, in which some are in two splits."""
    root = tmp_path_factory.mktemp("project")
    images = root / "images"
    seed = 0
    for split in SPLITS:
        for name in ("ants", EVIL):
            (images / split / name).mkdir(parents=True)
            for i in range(6):
                picture(seed := seed + 1).save(images / split / name / f"{i}.png")
    train = Image.open(images / "train" / "ants" / "2.png")
    encoded(train.resize((90, 90)), 60).save(images / "test" / "ants" / "smaller.png")
    train.save(images / "val" / EVIL / f"other label {EVIL}.png")
    (images / "train" / "ants" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    (images / "train" / "ants" / "notes.txt").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        params = write_params(source="folder", folder=str(images), image_size=96, max_rejected=0.1)
        fetch(params.data)
        prepare(params.data, params.seed)
    return root


def write_packed(params: Params, classes: Sequence[str], largest: int = 12) -> None:
    """Packed noise of 12 px from a source without files, the first class the largest."""
    PACKED.mkdir(parents=True)
    counts: dict[Any, dict[str, int]] = {}
    random = np.random.default_rng(0)
    for split in SPLITS:
        labels = np.repeat(np.arange(len(classes)), 3)
        labels = np.concatenate([labels, np.zeros(largest - 3, np.int64)]).astype(np.int64)
        images = random.integers(0, 256, (len(labels), 12, 12, 1)).astype(np.uint8)
        np.save(PACKED / f"{split}_images.npy", images)
        np.save(PACKED / f"{split}_labels.npy", labels)
        origins = "".join(Origin(f"image {i}", 12, 12).line() for i in range(len(labels)))
        (PACKED / f"{split}_origins.jsonl").write_text(origins)
        sizes = np.bincount(labels, minlength=len(classes)).tolist()
        counts[split] = dict(zip(classes, sizes, strict=True))
    Manifest(
        source="noise", licence="none", classes=tuple(classes), image_size=12,
        stored_size=12, channels=1,
        counts=counts, digests={file.name: sha256(file) for file in PACKED.iterdir()},
        calibration_digest="c" * 64, mean=(128.0,), std=(64.0,), rejected=(),
        made_for=settings_digest(params.data, params.seed),
    ).write(PACKED / MANIFEST)  # fmt: skip


class Parsed(HTMLParser):
    """The elements of a page, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def sources(self) -> list[str]:
        return [str(its["src"]) for tag, its in self.elements if tag == "img"]


def test_the_command_says_what_it_found_and_where_the_page_is(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert main(["look"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "look into: 1 of 13 test images are near-duplicates of train images",
        "look into: 1 of 13 val images are near-duplicates of train images, "
        "1 of them with another label",
        "look into: 1 of 13 test images are near-duplicates of val images, "
        "1 of them with another label",
        "0 of 12 train images are near-duplicates of earlier train images",
        "1 of 38 images are below 110 px and are enlarged",
        "the 2 classes of train have 6 to 6 images",
        *(f"look into: {text}" for text in too_small({"val": {"a": 13}, "test": {"a": 7, "b": 6}})),
        "look into: broken files left out: 1; further warnings of prepare: 4",
        f"The page: {(folder / PAGE).as_uri()}",
    ]


def test_the_page_names_what_is_doubled_and_what_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    look(load_params())
    text = Parsed(PAGE.read_text()).text
    for name in ("test/ants/smaller.png", f"val/{EVIL}/other label {EVIL}.png"):
        assert name in text
    assert "train/ants/torn.png" in text and "not an image that Pillow can read" in text
    assert "notes.txt" in text  # is not used
    assert "images are in train and in val" in text  # of `prepare`: the same pixels
    assert "90 to 180 px" in text


def test_names_are_text_and_nothing_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    look(load_params())
    page = PAGE.read_text()
    parsed = Parsed(page)
    assert all(source.startswith("data:image/") for source in parsed.sources())
    assert not any(tag in ("script", "link", "iframe", "object") for tag, _ in parsed.elements)
    assert not any(key.startswith("on") for _, its in parsed.elements for key in its)
    assert not re.search(r"url\((?!#)|@import", page)
    policy = [its["content"] for _, its in parsed.elements if "http-equiv" in its]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert EVIL in parsed.text


def test_views_are_those_that_students_are_trained_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[NDArray[np.uint8]] = []

    def tile(pixels: NDArray[np.uint8]) -> str:
        shown.append(pixels)
        return "data:image/png,"

    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        look_page, "_tile", lambda pixels: shown.append(pixels) or "data:image/png,"
    )
    params = load_params()
    look(params)
    manifest = Manifest.read(PACKED / MANIFEST)
    views = student_views(params, manifest)
    assert views.augment.crop == 0.5  # found by `auto` at 96 px
    every = np.arange(len(views))
    known = [views.known[0], *(views.batch(epoch, every, "cpu")[0].numpy() for epoch in (0, 1))]
    rows = np.stack(shown[: 2 * 3 * look_page.IMAGES]).reshape(2, 3, look_page.IMAGES, 96, 96, 3)
    for sheet in rows:
        places = [
            [int(np.flatnonzero((pixels == tile).all((1, 2, 3)))[0]) for tile in row]
            for pixels, row in zip(known, sheet, strict=True)
        ]
        assert places[0] == places[1] == places[2] == sorted(set(places[0]))
    assert "crop of 50% to 100% of the area" in PAGE.read_text()


def test_a_hundred_classes_are_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = write_params()
    write_packed(params, [f"kind {i:03}" for i in range(100)])
    lines = look(params)
    assert "look into: the 100 classes of train have 3 to 12 images" in lines
    page = PAGE.read_text()
    text = Parsed(page).text
    assert "20 classes of 100 were drawn" in text
    left = text.split("Classes that are not shown")[1].split("Images by class")[0]
    assert left.count("kind ") == 80
    assert page.count("<article>") == 20
    rows = [tag for tag, its in Parsed(page).elements if tag == "td" and its.get("class") == "bar"]
    assert len(rows) == 40 and "60 classes between" in text
    assert "kind 000" in text and "All images have 12 x 12 px." in text
    assert len(page) < 1_000_000
    look(params)
    assert PAGE.read_text() == page  # what is shown is drawn by the seed


def test_of_many_near_duplicates_some_are_shown_and_the_rest_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(look_page, "NAMED", 20)
    params = write_params()
    write_packed(params, ["one", "two"], largest=40)
    for name in ("images.npy", "labels.npy"):  # test is train
        (PACKED / f"test_{name}").write_bytes((PACKED / f"train_{name}").read_bytes())
    manifest = Manifest.read(PACKED / MANIFEST)
    digests = {file.name: sha256(file) for file in PACKED.iterdir() if file.name != MANIFEST}
    manifest.model_copy(update={"digests": digests}).write(PACKED / MANIFEST)
    assert look(params)[0] == "look into: 43 of 43 test images are near-duplicates of train images"
    text = Parsed(PAGE.read_text()).text
    assert "Test and train: 43" in text and "8 more by name" in text and "and 23 more" in text
    assert "test: image 15 = train: image 15" in text


def test_without_packed_images_or_with_others_it_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = write_params()
    with pytest.raises(PipelineError, match="no images are packed yet") as error:
        look(params)
    assert error.value.fix == "run `dvc repro prepare`"
    write_packed(params, ["one", "two"])
    look(params)
    PAGE.unlink()
    with pytest.raises(PipelineError, match="packed for other settings") as error:
        look(write_params(image_size=32))
    assert error.value.fix == "run `dvc repro prepare`" and not PAGE.exists()
    (PACKED / "val_origins.jsonl").write_text("")
    with pytest.raises(PipelineError, match=r"val_origins\.jsonl.*damaged or of another run"):
        look(params)
