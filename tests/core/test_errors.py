"""How a command ends, and that files appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError, refusals, run
from pipeline.core.files import (
    checked,
    move_contents,
    remove_left,
    sha256,
    temporary_folder,
    whole_folder,
    write_whole,
)

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_read_only_folder_is_a_user_error(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    ended, said = ending(OSError(code, os.strerror(code), "models/x"), capsys)
    assert ended == 1 and "error: models/x: this user may not read or write it" in said


STAGE = """
import time
from pipeline.core.errors import run
def main():
    print("begun", flush=True)
    time.sleep(1.5)
    print("went on", flush=True)
run(main)
"""
PARENT = """
import subprocess, sys
subprocess.Popen(sys.argv[1:]).wait()
"""


@pytest.mark.parametrize("shell", [[], ["/bin/sh", "-c"], ["/bin/bash", "-c"]])
@pytest.mark.parametrize("by_dvc", [True, False])
def test_a_stage_ends_with_dvc_and_a_persons_command_goes_on(
    tmp_path: Path, shell: list[str], by_dvc: bool
) -> None:
    (tmp_path / "stage.py").write_text(STAGE)
    command = [sys.executable, str(tmp_path / "stage.py")]
    if shell:
        command = [*shell, " ".join(command)]
    environment = {"PYTHONPATH": str(ROOT), "SHELL": shell[0] if shell else "/bin/zsh"}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *command],
        env=environment | ({"DVC_STAGE": "distill"} if by_dvc else {}),
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    assert parent.stdout.readline() == "begun\n"
    parent.kill()
    assert parent.stdout.read() == ("" if by_dvc else "went on\n")
    parent.wait()


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


def test_a_full_disk_of_temporary_files_is_told_before_they_go(
    tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tiny_disk))
    with pytest.raises(OSError, match="no space left") as error, temporary_folder() as scratch:
        with pytest.raises(OSError, match="No space left"):
            (scratch / "large").write_bytes(bytes(1 << 21))
        raise RuntimeError("a library that does not say why")
    assert error.value.errno == errno.ENOSPC
    assert not list(tiny_disk.iterdir())


def test_two_processes_do_not_share_a_scratch_and_a_killed_ones_goes(tmp_path: Path) -> None:
    running, killed = (tmp_path / f".out.host-{process}.partial" for process in (1, 2))
    running.mkdir()
    killed.mkdir()
    lock = os.open(running, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)  # as its process holds it
    with whole_folder(tmp_path / "out") as scratch, whole_folder(tmp_path / "out.b"):
        (scratch / "a").write_text("mine")
    os.close(lock)
    assert sorted(path.name for path in tmp_path.iterdir()) == [running.name, "out", "out.b"]
    assert (tmp_path / "out" / "a").read_text() == "mine"


def test_what_killed_processes_left_goes_also_where_nobody_writes_that_output(
    tmp_path: Path,
) -> None:
    outs = tmp_path / "models" / "onnx"
    left = outs / ".student.host-1.partial"
    left.mkdir(parents=True)
    (left / "model.onnx").write_text("half")
    (outs / ".student.old.host-1.partial").write_text("a file")
    (outs / ".user's own.partial").write_text("no scratch")
    with whole_folder(outs / "running") as scratch:
        (scratch / "a").write_text("mine")
        remove_left(tmp_path, deep=False)
        assert left.exists()
        remove_left(tmp_path, deep=True)
        remove_left(tmp_path / "missing", deep=True)
    assert sorted(path.name for path in outs.iterdir()) == [".user's own.partial", "running"]


def test_a_folder_that_another_process_put_there_meanwhile_is_replaced(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as scratch:
        (scratch / "a").write_text("later")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "b").write_text("earlier")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_contents_move_to_another_file_system(tmp_path: Path, tiny_disk: Path) -> None:
    source, target = tmp_path / "source", tiny_disk / "target"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "a").write_text("text")
    target.mkdir()
    move_contents(source, target)
    assert (target / "deep" / "a").read_text() == "text" and not source.exists()


def test_a_file_without_its_recorded_digest_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with pytest.raises(PipelineError, match="is missing"):
        checked(file, "0" * 64)
    file.write_text("text")
    assert checked(file, sha256(file)) == file
    for digest in ("0" * 64, None):
        with pytest.raises(PipelineError, match="damaged or of another run") as error:
            checked(file, digest)
        assert error.value.where == str(file)


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
