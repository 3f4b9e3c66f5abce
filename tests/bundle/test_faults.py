"""What the scripts of a bundle do where a file is damaged or a system gives less than usual."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.bundle.test_bundle import ON_DEVICE, SHIPPED, bundle, python, rewrite_sums

__all__ = ["bundle"]

QUICK = ("--rounds", "1", "--min-runs", "1", "--min-seconds", "1e-6", "--batch", "4")
NAMELESS = 12345
"""A user without an entry in /etc/passwd, as `docker run --user` may ask for."""


def test_every_cut_of_verify_leaves_a_script_that_fails() -> None:
    source = (ON_DEVICE / "verify.py").read_text()
    scripts = 0
    for length in range(len("try"), len(source) - 1):  # `t` and `tr` are names of nothing
        try:
            body = ast.parse(source[:length]).body
        except SyntaxError:
            continue
        scripts += 1
        assert isinstance(body[0], ast.Try) and "from common import" in ast.unparse(body[0])
    assert scripts > 100
    assert source.endswith('if __name__ == "__main__":\n    finish(main)\n')


@pytest.mark.parametrize("name", ["verify.py", "bench.py", "run.py"])
def test_a_script_that_was_cut_in_half_says_so(bundle: Path, name: str) -> None:
    lines = (bundle / name).read_text().splitlines(keepends=True)
    start = next(i for i in range(len(lines) // 2, len(lines)) if lines[i].startswith("def "))
    (bundle / name).write_text("".join(lines[:start]))
    done = python(bundle / name)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"FAILED: {bundle / name} is cut short\n  what to do: copy")


def test_a_script_of_ones_own_may_use_a_bundle(bundle: Path) -> None:
    (bundle / "mine.py").write_text("import common\nprint(common.record()['student'])\n")
    done = python(bundle / "mine.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "mnv4_small_050\n", "")


@pytest.mark.parametrize("name", ["harness.py", "runtime.py", "session.py", "pixels.py"])
def test_a_damaged_file_is_not_imported(bundle: Path, name: str) -> None:
    (bundle / name).write_text("print('imported')\n1 / 0\n")
    complaint = f"{name} is not the file that was bundled"
    done = python(bundle / "verify.py", "--json", bundle / "result.json")
    assert (done.returncode, done.stdout, done.stderr) == (1, f"FAILED: {complaint}\n", "")
    result = json.loads((bundle / "result.json").read_text())
    assert (result["verdict"], result["why"]) == ("FAILED", complaint)
    done = python(bundle / "bench.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {complaint}\n  what to do: copy the bundle here again\n"


@pytest.mark.parametrize("content", ["", "def finish(:", "import harness\nSUMS = 1\n", "1 / 0"])
def test_a_damaged_common_file_is_one_sentence(bundle: Path, content: str) -> None:
    (bundle / "common.py").write_text(content)
    done = python(bundle / "verify.py")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("FAILED: common.py is damaged: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("file", SHIPPED.values(), ids=list(SHIPPED))
def test_nothing_of_a_bundle_is_imported_before_it_is_checked(file: Path) -> None:
    """But common.py, by scripts; what they import may import each other."""
    if not file.read_text().endswith("finish(main)\n"):
        return
    parts = {Path(name).stem for name in SHIPPED} | {"harness", "runtime", "session", "pixels"}
    for node in ast.parse(file.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not parts - {"common"} & set(names), names


def test_a_verdict_is_printed_even_if_its_file_cannot_be_written(bundle: Path) -> None:
    done = python(bundle / "verify.py", "--json", "/dev/full")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("PASSED: ")
    assert done.stderr == "error: /dev/full cannot be written: No space left on device\n"
    done = python(bundle / "verify.py", "--json", "/dev/stdout")  # is not replaced by a file
    assert done.returncode == 0 and '"verdict": "PASSED"' in done.stdout
    done = python(bundle / "bench.py", *QUICK, "--json", bundle / "none" / "x.json")
    assert done.returncode == 1 and "p50 " in done.stdout
    assert done.stderr.endswith("cannot be written: No such file or directory\n")


def test_a_verdict_that_cannot_be_printed_is_none(bundle: Path) -> None:
    command = [sys.executable, "-B", bundle / "verify.py"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("damage", ["pickle", "foreign", "cut"])
def test_golden_images_that_are_none_are_one_sentence(bundle: Path, damage: str) -> None:
    golden = bundle / "golden.npz"
    if damage == "cut":
        golden.write_bytes(golden.read_bytes()[:1000])
    elif damage == "pickle":
        images = np.array([{"an": "object"}], dtype=object)
        np.savez(golden, images=images, labels=images, logits=images)
    else:
        np.savez(golden, pixels=np.zeros(3))
    rewrite_sums(bundle)
    for name in ("verify.py", "bench.py"):
        done = python(bundle / name)
        said = done.stdout + done.stderr
        assert done.returncode == 1 and "golden.npz holds no golden images: " in said
        assert "Traceback" not in said


@pytest.fixture
def elsewhere(bundle: Path) -> Iterator[Path]:
    """A bundle where any user may read it, and write beside it."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(bundle, f"{folder}/bundle")
        subprocess.run(["chmod", "-R", "a+rwX", folder], check=True)
        yield Path(folder) / "bundle"


def test_a_user_without_a_name_home_or_processes_gets_all_results(elsewhere: Path) -> None:
    """bench.py measures the throughput in another process, which may not start."""
    code = (
        "import resource, runpy, sys; del sys.argv[0]; sys.path.insert(0, sys.argv[1]); "
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0)); del sys.argv[1]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    user = ["setpriv", f"--reuid={NAMELESS}", f"--regid={NAMELESS}", "--clear-groups"]
    file = elsewhere.with_name("result.json")
    for name, extra in {"verify.py": (), "bench.py": (*QUICK, "--json", file)}.items():
        script = ["-B", "-s", "-c", code, elsewhere / name, elsewhere, *extra]
        done = subprocess.run(
            [*([] if os.geteuid() else user), sys.executable, *script],
            env={"HOME": "/nonexistent", "PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1"},
            cwd="/", capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "no throughput: the process that measures it cannot start" in done.stdout
    result = json.loads(file.read_text())
    assert result["latency_ms"]["p50"] > 0 and result["throughput"] is None


def test_bundles_report_nothing_and_leave_the_home_alone(
    shipped: dict[str, list[Path]], tmp_path: Path
) -> None:
    """Runtimes that report to their makers keep an identifier of the user in the home."""
    for name, folders in shipped.items():
        home = tmp_path / name
        home.mkdir()
        graph = ("--graph",) if name == "tensorrt" else ()
        reporting = {"HOME": str(home), "XDG_CACHE_HOME": "", "ORT_DISABLE_TELEMETRY": "0"}
        done = python(folders[0] / "verify.py", *graph, **reporting)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not list(home.iterdir()), name


@pytest.mark.parametrize(
    ("architecture", "cpuinfo", "executable", "emulator"),
    [
        ("x86_64", "model name\t: AMD EPYC\nflags\t\t: fpu sse avx2\n", "", None),
        ("aarch64", "CPU implementer\t: 0x41\nFeatures\t: asimd\n", "", None),
        ("riscv64", "isa\t: rv64imafdc\n", "", None),
        ("arm64", "", "", None),
        ("x86_64", "model name\t: QEMU Virtual CPU version 2.5+\nflags\t\t: fpu\n", "", "QEMU"),
        ("x86_64", "model name\t: VirtualApple @ 2.50GHz\nflags\t\t: fpu\n", "", "Rosetta"),
        ("aarch64", "model name\t: AMD EPYC\nflags\t\t: fpu sse\n", "", "a CPU of another kind"),
        ("x86_64", "CPU implementer\t: 0x41\nFeatures\t: asimd\n", "", "a CPU of another kind"),
        ("aarch64", "CPU implementer\t: 0x00\nFeatures\t: asimd\n", "", "QEMU"),
        ("aarch64", "CPU implementer\t: 0x41\n", "/usr/bin/qemu-aarch64", "QEMU"),
        ("aarch64", "CPU implementer\t: 0x41\n", "/usr/bin/qemu-aarch64-static", "QEMU"),
        ("aarch64", "CPU implementer\t: 0x41\n", "/home/qemu-user/bin/python3.13", None),
    ],
)
def test_an_emulated_cpu_is_told_by_what_the_system_says(
    architecture: str, cpuinfo: str, executable: str, emulator: str | None
) -> None:
    code = f"import common; print(common.emulated({architecture!r}, {cpuinfo!r}, {executable!r}))"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=ON_DEVICE, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(emulator), done.stderr
