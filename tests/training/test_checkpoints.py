"""A checkpoint is what was saved for its run, or none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.training.checkpoints import checkpoint_file, load_checkpoint, save_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved checkpoint of the run `key`."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint("key", {"step": 3, "weights": torch.arange(4.0)})
    return checkpoint_file("key")


@pytest.mark.usefixtures("file")
def test_a_checkpoint_is_loaded_as_it_was_saved() -> None:
    state = load_checkpoint("key", CPU)
    assert state is not None and state["step"] == 3
    assert torch.equal(state["weights"], torch.arange(4.0))
    assert load_checkpoint("another", CPU) is None


def test_no_damaged_checkpoint_is_used_and_each_is_told(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = file.read_bytes()
    flipped = [
        sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :]
        for place in range(0, len(sound), 37)
    ]
    for content in (b"", sound[:20], sound[:-1], *flipped):
        file.write_bytes(content)
        assert load_checkpoint("key", CPU) is None
        assert f"{file}: the checkpoint is damaged" in capsys.readouterr().err


def test_a_checkpoint_of_another_run_is_not_used(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.rename(checkpoint_file("another"))
    assert load_checkpoint("another", CPU) is None
    assert "training starts again" in capsys.readouterr().err
