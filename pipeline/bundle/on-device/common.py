"""What all scripts of a bundle use: its digests, its record, the model, this machine.

Scripts import this file first. It imports nothing of the bundle by itself: `damaged` or
`check_files` compares every file with SHA256SUMS before another one is imported.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

try:
    import numpy as np
except ImportError as error:
    raise SystemExit(f"error: {error}\n  what to do: pip install numpy") from None

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Runner = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

FOLDER = Path(__file__).resolve().parent
SUMS = "SHA256SUMS"
_AGAIN = "copy the bundle here again"


class BundleError(RuntimeError):
    """An error that the user of a script can mend: what is wrong, and what to do about it."""

    def __init__(self, what: str, fix: str | None = None) -> None:
        super().__init__(what + (f"\n  what to do: {fix}" if fix else ""))


def finish(main: Callable[[], int]) -> None:
    """Run a script and exit: 0 done, 1 an error that can be mended, 130 interrupted.

    Such errors are `BundleError`, and `RuntimeError` of runtime.py. The call is the last line of
    a script; one that ends without it was cut short, and ends with exit code 1.
    """
    atexit.unregister(_cut_short)
    try:
        code = main()
        sys.stdout.flush()
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except OSError as error:  # such as an output on a full disk
        print(f"error: {error}", file=sys.stderr)
        code = 1
        sys.stdout = None  # else the exit would try again to flush it
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def damaged() -> dict[str, str]:
    """Differences from SHA256SUMS, a sentence by file. Files that it does not name are ignored."""
    found = {}
    digests = {line[66:]: line[:64] for line in _sums()}
    if "verify.py" not in digests:  # the last line of all
        found[SUMS] = f"{SUMS} is cut short"
    for name, digest in digests.items():
        if not (FOLDER / name).is_file():
            found[name] = f"{name} is missing"
        elif _sha256(FOLDER / name) != digest:
            found[name] = f"{name} is not the file that was bundled"
    return found


def check_files() -> None:
    """Raise `BundleError` for a damaged bundle."""
    found = damaged()
    if found:
        raise BundleError("; ".join(found.values()), _AGAIN)


def bundle_digest() -> str:
    """SHA-256 of SHA256SUMS, which stands for the whole content of the bundle."""
    return _sha256(FOLDER / SUMS)


def _sums() -> list[str]:
    try:
        return (FOLDER / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise BundleError(f"{SUMS}: {error}", _AGAIN) from None


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            for piece in iter(lambda: stream.read(1 << 20), b""):
                digest.update(piece)
    except OSError as error:
        raise BundleError(str(error), _AGAIN) from None
    return digest.hexdigest()


def _cut_short() -> None:
    print(f"FAILED: {sys.argv[0]} is cut short\n  what to do: {_AGAIN}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)  # the exit code cannot be changed otherwise as late as this


def _is_bundled(script: Path) -> bool:
    try:
        return script.parent == FOLDER and script.name in {line[66:] for line in _sums()}
    except BundleError:
        return False


# A script of the user's own may import this file, too, and need not call `finish`.
if _is_bundled(Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()):
    atexit.register(_cut_short)


@functools.lru_cache(maxsize=None)
def record() -> dict[str, Any]:
    """bundle.json."""
    file = FOLDER / "bundle.json"
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file}: {error}", _AGAIN) from None
    return content


def identity() -> dict[str, str]:
    """The bundle, for results that are about it."""
    names = {key: str(record()[key]) for key in ("student", "backend", "precision")}
    return {**names, "digest": bundle_digest()}


def open_model(
    threads: int, module: str = "runtime", batch: int = 1
) -> tuple[Runner, dict[str, str]]:
    """Open the model of this bundle.

    Args:
        threads: of the CPU.
        module: the script that opens it: runtime or, for TensorRT's graph on the CPU, graph.
        batch: images per call, exactly.

    Returns:
        A function of raw pixels uint8 [batch, H, W, C] to logits float32 [batch, classes], and
        the versions of the packages that run it.

    Raises:
        BundleError: with the command that installs a missing runtime, or with the runtime's error.
    """
    model = str(FOLDER / record()["model_file"])
    try:
        runtime = importlib.import_module(module)
        run: Runner = runtime.load(model, threads, batch)
        return run, runtime.versions()
    except ImportError as error:
        raise BundleError(f"the runtime cannot be imported: {error}", install(module)) from None
    except Exception as error:  # each runtime has its own
        raise BundleError(f"the runtime cannot open the model: {one_line(error)}") from error


def install(module: str) -> str:
    """The command, or the choice of commands, that installs what a module needs."""
    return ", or ".join(record()["install"][module])


def golden() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]:
    """Test images uint8 [N, H, W, C], their labels int64 [N], and the logits float32 [N, classes]
    that this model gave in the lab."""
    file = FOLDER / "golden.npz"
    try:
        with np.load(str(file), allow_pickle=False) as arrays:
            return arrays["images"], arrays["labels"], arrays["logits"]
    except Exception as error:  # of the archive, its compression and NumPy's format
        raise BundleError(
            f"{file.name} holds no golden images: {one_line(error)}", _AGAIN
        ) from None


def machine() -> dict[str, Any]:
    """This machine: what logits and latencies depend on."""
    from harness import cores, system_text

    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    cpuinfo = system_text(Path("/proc/cpuinfo"))
    # Arm kernels report no CPU model, but the board.
    board = system_text(Path("/proc/device-tree/model")).strip("\0")
    emulator = emulated(platform.machine(), cpuinfo, _executable())
    return {
        "cpu": one_line(_cpu(cpuinfo) or board or platform.processor() or platform.machine(), 200),
        "architecture": platform.machine(),
        "cores": cores(),
        "system": platform.system(),
        "kernel": platform.release(),
        "governor": system_text(governor) or None,
        "python": platform.python_version(),
        "numpy": np.__version__,
        **({"emulator": emulator} if emulator else {}),
    }


def emulated(architecture: str, cpuinfo: str, executable: str = "") -> str | None:
    """What emulates this CPU; None for a real one.

    QEMU's user mode, by which containers of another architecture run, is the program that the
    kernel executes. In /proc/cpuinfo it shows the CPU of the host or, since version 8.2, the Arm
    CPU that it was told to be, by default one without a maker. QEMU without KVM and Apple's
    Rosetta name themselves.

    Args:
        architecture: as `uname -m` prints it.
        cpuinfo: content of /proc/cpuinfo, or nothing.
        executable: path of the program that the kernel executes, or nothing.
    """
    if re.search(r"(^|/)qemu-[^/]*$", executable):
        return "QEMU"
    found = re.search(r"QEMU|VirtualApple", cpuinfo)
    if found:
        return {"QEMU": "QEMU", "VirtualApple": "Rosetta"}[found.group()]
    if re.search(r"^CPU implementer\s*: 0x0+$", cpuinfo, re.MULTILINE):
        return "QEMU"
    x86 = re.search(r"^flags\s*:", cpuinfo, re.MULTILINE)
    arm = re.search(r"^CPU implementer\s*:", cpuinfo, re.MULTILINE)
    meant = re.match("x86|AMD64|i[3-6]86", architecture) is not None
    return "a CPU of another kind" if (arm if meant else x86) else None


def _executable() -> str:
    """The program that the kernel executes; nothing where the system has no /proc.

    QEMU answers with Python's path for /proc/self/exe, but not for the same link of a thread.
    """
    try:
        return os.readlink("/proc/thread-self/exe")
    except OSError:
        return ""


def _cpu(cpuinfo: str) -> str:
    lines = cpuinfo.splitlines()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(names))


def one_line(error: object, most: int = 1000) -> str:
    """An error's text in a line that a terminal shows as it is; its kind if it has none."""
    words = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in words)[:most]


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a file that appears whole or not at all; `BundleError` where it cannot be written."""
    special = file.exists() and not file.is_file()  # /dev/stdout is not to be replaced
    scratch = file if special else file.with_name(f".{file.name}.partial")
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    try:
        scratch.write_text(text, encoding="utf-8")
        if not special:
            scratch.replace(file)
    except OSError as error:
        if scratch.is_file():
            scratch.unlink()
        raise BundleError(f"{file} cannot be written: {error.strerror}") from None
