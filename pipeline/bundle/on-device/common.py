"""What all scripts of a bundle use: its record, its digests, the model, this machine."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import numpy as np
from harness import cores, system_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Runner = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

FOLDER = Path(__file__).resolve().parent
SUMS = "SHA256SUMS"


class BundleError(RuntimeError):
    """An error that the user of a script can mend: what is wrong, and what to do about it."""

    def __init__(self, what: str, fix: str | None = None) -> None:
        super().__init__(what + (f"\n  what to do: {fix}" if fix else ""))


@functools.lru_cache(maxsize=None)
def record() -> dict[str, Any]:
    """bundle.json."""
    file = FOLDER / "bundle.json"
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file}: {error}", "copy the bundle here again") from None
    return content


def bundle_digest() -> str:
    """SHA-256 of SHA256SUMS, which stands for the whole content of the bundle."""
    return _sha256(FOLDER / SUMS)


def damaged() -> list[str]:
    """Differences from SHA256SUMS, a sentence per file. Files that it does not name are ignored."""
    found = []
    digests = {line[66:]: line[:64] for line in _sums()}
    if "verify.py" not in digests:  # the last line of all
        found.append(f"{SUMS} is cut short")
    for name, digest in digests.items():
        if not (FOLDER / name).is_file():
            found.append(f"{name} is missing")
        elif _sha256(FOLDER / name) != digest:
            found.append(f"{name} is not the file that was bundled")
    return found


def check_files() -> None:
    """Raise `BundleError` for a damaged bundle."""
    found = damaged()
    if found:
        raise BundleError("; ".join(found), "copy the bundle here again")


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
        text = " ".join(str(error).split()) or type(error).__name__
        raise BundleError(f"the runtime cannot open the model: {text}") from error


def install(module: str) -> str:
    """The command, or the choice of commands, that installs what a module needs."""
    return ", or ".join(record()["install"][module])


def golden() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]:
    """Test images uint8 [N, H, W, C], their labels int64 [N], and the logits float32 [N, classes]
    that this model gave in the lab."""
    with np.load(str(FOLDER / "golden.npz"), allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"], arrays["logits"]


def machine() -> dict[str, Any]:
    """This machine: what logits and latencies depend on."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "cpu": _cpu(),
        "architecture": platform.machine(),
        "cores": cores(),
        "system": platform.system(),
        "kernel": platform.release(),
        "governor": system_text(governor) or None,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def identity() -> dict[str, str]:
    """The bundle, for results that are about it."""
    names = {key: str(record()[key]) for key in ("student", "backend", "precision")}
    return {**names, "digest": bundle_digest()}


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def finish(main: Callable[[], int]) -> None:
    """Run a script and exit: 0 done, 1 an error that can be mended, 130 interrupted.

    Such errors are `BundleError`, and `RuntimeError` of runtime.py.
    """
    try:
        code = main()
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _sums() -> list[str]:
    try:
        return (FOLDER / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise BundleError(f"{SUMS}: {error}", "copy the bundle here again") from None


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for piece in iter(lambda: stream.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def _cpu() -> str:
    lines = system_text(Path("/proc/cpuinfo")).splitlines()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    # Arm kernels report no CPU model, but the board.
    board = system_text(Path("/proc/device-tree/model")).strip("\0")
    return ", ".join(sorted(names)) or board or platform.processor() or platform.machine()
