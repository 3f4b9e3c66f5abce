"""How a command ends, and that files appear whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError, refusals, run
from pipeline.core.files import sha256, whole_folder, write_whole


def ending(error: BaseException | None, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    def main() -> None:
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as end:
        run(main)
    return int(end.value.code or 0), capsys.readouterr().err


def test_success_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(None, capsys) == (0, "")


def test_a_user_error_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    error = PipelineError("is not there", where="data/x", fix="make it")
    assert ending(error, capsys) == (1, "error: data/x: is not there\n  what to do: make it\n")


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = ending(KeyboardInterrupt(), capsys)
    assert code == 130 and "run the same command again" in said


def test_a_full_disk_is_a_user_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = ending(OSError(errno.ENOSPC, "No space left on device", "m.bin"), capsys)
    assert code == 1 and "m.bin: the disk is full" in said


def test_a_defect_keeps_its_traceback_and_ends_like_no_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = ending(ZeroDivisionError("a defect"), capsys)
    assert code == 70 and "Traceback" in said and "ZeroDivisionError: a defect" in said
    code, said = ending(OSError(errno.EIO, "Input/output error"), capsys)
    assert code == 70 and "Traceback" in said


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_folder_is_as_it_was_after_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "out"
    with whole_folder(out) as scratch:
        (scratch / "a").write_text("old")
    with pytest.raises(error), whole_folder(out) as scratch:
        (scratch / "a").write_text("new")
        raise error
    assert (out / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_told_whatever_the_library_says(tiny_disk: Path) -> None:
    import torch
    from safetensors.torch import save_file

    with (
        pytest.raises(OSError, match="no space left") as error,
        whole_folder(tiny_disk / "out") as scratch,
    ):
        save_file({"weights": torch.zeros(1 << 20)}, scratch / "model.safetensors")
    assert error.value.errno == errno.ENOSPC
    assert not list(tiny_disk.iterdir())


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "deep" / "a", "text")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a"]
    # SHA-256 of `text`, from sha256sum
    assert sha256(tmp_path / "deep" / "a") == (
        "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1"
    )


def test_a_converters_refusal_is_the_first_line_of_its_first_cause() -> None:
    with (
        pytest.raises(PipelineError) as raised,
        refusals("the converter", where="compile of S/B/P", fix="choose another student"),
    ):
        try:
            raise ValueError("/usr/lib/site-packages/torch/linear.py:134: no batch_matmul\nmore")
        except ValueError as error:
            raise RuntimeError("step 3 failed") from error
    assert str(raised.value) == (
        "compile of S/B/P: the converter refuses the network: torch/linear.py:134: no batch_matmul"
        "\n  what to do: choose another student"
    )


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), MemoryError(), KeyError("ours")])
def test_what_is_no_refusal_of_the_converter_passes(error: Exception) -> None:
    with (
        pytest.raises(type(error)) as raised,
        refusals("the converter", (RuntimeError,), where="", fix=""),
    ):
        raise error
    assert raised.value is error
