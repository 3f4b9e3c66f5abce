"""A stage finds its names in DVC's name for it, or on its command line; no other word is one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from pipeline.core.arguments import parse_names
from pipeline.core.errors import PipelineError
from stages import names
from tests.core.test_params import write


def named(monkeypatch: pytest.MonkeyPatch, stage: str | None, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["stage", *words])
    monkeypatch.delenv("DVC_STAGE", raising=False)
    if stage is not None:
        monkeypatch.setenv("DVC_STAGE", stage)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("compile@tflite-mnv4", ()),
        ("../a@b/dvc.yaml:compile@tflite-mnv4", ()),
        ("compile@openvino-other", ("--backend", "tflite", "--student", "mnv4")),
        ("report", ("--backend", "tflite", "--student", "mnv4")),
        (None, ("--student", "mnv4", "--backend", "tflite")),
    ],
)
def test_names_come_from_dvc_or_from_a_person(
    monkeypatch: pytest.MonkeyPatch, stage: str | None, words: tuple[str, ...]
) -> None:
    named(monkeypatch, stage, *words)
    assert parse_names("backend", "student") == ["tflite", "mnv4"]


def test_without_either_the_option_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named(monkeypatch, None)
    with pytest.raises(SystemExit):
        parse_names("student")
    assert "required: --student" in capsys.readouterr().err


HOSTILE = [
    "x; touch y",
    "../../docs",
    "..",
    ".git",
    "$(touch y)",
    "a-b",
    "a b",
    "",
    "x" * 65,
    "a\nb",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_name_is_refused_by_the_stage_and_before_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    for stage, words in ((f"distill@{name}", ()), (None, ("--student", name))):
        named(monkeypatch, stage, *words)
        with pytest.raises(PipelineError, match="a name has at most 64 letters"):
            parse_names("student")
    write(tmp_path, {"students.enabled": [name]})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match=r"students\.enabled\.0: a name has|control character"):
        names.main()
    assert not names.CHECKED.exists()


def test_sound_names_leave_the_same_file_whatever_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    said = set()
    for enabled in (["mnv4_small_050"], ["other.2", "_x"]):
        write(tmp_path, {"students.enabled": enabled})
        names.main()
        said.add(names.CHECKED.read_text())
    assert len(said) == 1


def test_the_stage_writes_what_the_graph_says() -> None:
    stages = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]
    assert stages["names"]["outs"] == [str(names.CHECKED)]
