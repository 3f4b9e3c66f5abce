"""Verifies bundles on emulated Arm CPUs: no Arm machine, no root, no container.

    python -m tests.arm.emulated [BUNDLE...] [--system NAME] [--cpu NAME]

Each bundle of models/bundles, or each BUNDLE, runs its own verify.py in QEMU's user mode: on 64-bit
Arm with the runtime that its own command installs there, and on 32-bit Arm with the last
tflite-runtime, where the bundle names it. An emulator proves logits, never latencies.

QEMU and the systems are Debian's packages, fetched by apt-get in a folder of its own, and checked
with Debian's keys. Wheels come by pip. Both stay in .work/arm: remove it to fetch them anew. The
results of verify.py go to .work/arm/results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.backends.base.artifact import BUNDLES
from pipeline.bundle.records import Bundle
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import whole_folder

CACHE = Path(".work/arm").absolute()
RESULTS = CACHE / "results"
MIRROR = "DEBIAN_MIRROR"
"""Environment variable: where Debian's packages come from; by default as on this machine."""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
QEMU_SUITE = "trixie"
"""Of QEMU 10. The 7.2 of bookworm crashes in LiteRT and ONNX Runtime."""
GLIBC = range(17, 42)
"""Minor versions of glibc 2 that wheels may ask for."""


@dataclass(frozen=True)
class System:
    """A Debian for Arm, and the CPUs to emulate."""

    name: str
    suite: str
    python: str
    qemu: str
    cpus: tuple[str, ...]
    machine: str
    packages: tuple[str, ...]
    libraries: tuple[str, ...]
    """Folders of its root that Debian would have made known to the loader when it was installed."""
    numpy: bool
    """Whether NumPy is Debian's, as PyPI has no wheel of it."""


SYSTEMS = (
    System(
        name="arm64",
        suite="trixie",
        python="3.13",
        qemu="qemu-aarch64",
        cpus=("cortex-a53", "cortex-a76", "max"),  # Raspberry Pi 3 and 5, and all that QEMU has
        machine="aarch64",
        packages=("base-files", "python3", "libgomp1", "libstdc++6"),
        libraries=(),
        numpy=False,
    ),
    System(
        name="armhf",
        suite="bookworm",  # the last Python for which there is a wheel of tflite-runtime
        python="3.11",
        qemu="qemu-arm",
        cpus=("cortex-a7",),  # Raspberry Pi 2
        machine="armv7l",
        packages=("base-files", "python3-numpy", "libstdc++6"),
        libraries=("usr/lib/arm-linux-gnueabihf/blas", "usr/lib/arm-linux-gnueabihf/lapack"),
        numpy=True,
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Verify bundles on emulated Arm CPUs.")
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE", help="all by default")
    parser.add_argument("--system", choices=[system.name for system in SYSTEMS])
    parser.add_argument("--cpu", choices=sorted({cpu for one in SYSTEMS for cpu in one.cpus}))
    arguments = parser.parse_args()
    folders = arguments.bundles or sorted(file.parent for file in BUNDLES.glob("*/bundle.json"))
    if not folders:
        raise PipelineError("there are no bundles", where=str(BUNDLES), fix="run `dvc repro`")
    failed = passed = 0
    for system in SYSTEMS:
        for folder in folders if arguments.system in (None, system.name) else ():
            options = command(Bundle.read(folder / "bundle.json"), system)
            for cpu in system.cpus if options else ():
                if arguments.cpu in (None, cpu):
                    verdict = verify(folder, system, cpu)
                    print(line(folder, system, cpu, verdict), flush=True)
                    failed += verdict["verdict"] != "PASSED"
                    passed += verdict["verdict"] == "PASSED"
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


def command(bundle: Bundle, system: System) -> tuple[str, ...]:
    """What pip is to install for `bundle`, from its own commands; nothing where none fits."""
    commands = bundle.install.get("graph", bundle.install["runtime"])
    for one in commands:
        asked = tuple(shlex.split(one.partition("#")[0])[2:])
        if asked[0].startswith("tflite-runtime") == (system.name == "armhf"):
            return asked
    return ()


def verify(folder: Path, system: System, cpu: str) -> dict[str, object]:
    """What verify.py of the bundle in `folder` writes on `cpu`."""
    bundle = Bundle.read(folder / "bundle.json")
    root = system_root(system)
    found = wheels(command(bundle, system), system)
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{folder.name}-{cpu}.json"
    file.unlink(missing_ok=True)
    # What verify.py does not write is no result: a program that dies, as QEMU's may.
    done = subprocess.run(
        [
            qemu() / system.qemu, "-L", root, *guest(root, system, found), root / "usr/bin/python3",
            "-B", "-s", folder / "verify.py", "--json", file,
            *(["--graph"] if "graph" in bundle.install else []),
        ],
        env={"PATH": os.environ["PATH"], "HOME": str(CACHE), "QEMU_CPU": cpu},
        text=True, capture_output=True,
    )  # fmt: skip
    if not file.exists():
        said = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
        return {"verdict": "FAILED", "why": f"exit code {done.returncode}: {said[-1]}"}
    verdict: dict[str, object] = json.loads(file.read_text())
    if verdict["machine"].get("emulator") != "QEMU":  # type: ignore[attr-defined]
        return verdict | {"verdict": "FAILED", "why": "verify.py did not notice the emulator"}
    return verdict


def guest(root: Path, system: System, found: Path) -> list[str]:
    """Options of QEMU for the environment of what it runs, which is not that of QEMU itself."""
    libraries = ":".join(str(root / folder) for folder in system.libraries)
    return ["-E", f"PYTHONPATH={found}", "-E", f"LD_LIBRARY_PATH={libraries}"]


def line(folder: Path, system: System, cpu: str, verdict: dict[str, object]) -> str:
    """A verdict for readers."""
    figures = [
        f"{name} {verdict[key]:.3g}"
        for name, key in (("max", "max_logit_error"), ("mean", "mean_logit_error"))
        if key in verdict
    ]
    what = ", ".join(figures)
    why = "" if verdict["verdict"] == "PASSED" else f": {verdict['why']}"
    return f"{verdict['verdict']} {folder.name} on {system.name} {cpu}, {what or 'no logits'}{why}"


def qemu() -> Path:
    """The folder of QEMU's programs for this machine."""
    own = _output("dpkg", "--print-architecture").strip()
    packages = _fetched(f"qemu-{own}", own, QEMU_SUITE, ["qemu-user"], dependencies=False)
    return packages / "usr/bin"


def system_root(system: System) -> Path:
    """The folder that is the root of a system: its packages, unpacked and not configured."""
    name = f"{system.name}-{system.suite}"
    return _fetched(name, system.name, system.suite, list(system.packages), dependencies=True)


def wheels(asked: Sequence[str], system: System) -> Path:
    """The folder with the packages that pip chooses for `asked` on a system."""
    key = hashlib.sha256("\n".join([*asked, system.machine, system.python]).encode()).hexdigest()
    place = CACHE / f"wheels-{key[:12]}"
    if not place.exists():
        tags = [f"manylinux_2_{minor}_{system.machine}" for minor in (2014, *GLIBC)]
        tags = [tag.replace("_2_2014", "2014") for tag in tags]
        packages = [one for one in asked if not one.startswith("numpy")] if system.numpy else asked
        with whole_folder(place) as scratch:
            _output(
                sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target",
                str(scratch), "--only-binary=:all:", "--python-version", system.python,
                *(part for tag in tags for part in ("--platform", tag)),
                *(["--no-deps"] if system.numpy else []), *packages,
            )  # fmt: skip
    return place


def _fetched(
    name: str, architecture: str, suite: str, packages: list[str], *, dependencies: bool
) -> Path:
    """A folder with Debian's packages unpacked in it.

    apt-get keeps its lists and archives in a folder of its own and knows no installed package, so
    an ordinary user can let it find all dependencies, for any architecture.
    """
    place = CACHE / name
    if place.exists():
        return place
    own = CACHE / f"apt-{name}"
    for folder in ("etc/preferences.d", "state/lists/partial", "cache/archives/partial"):
        (own / folder).mkdir(parents=True, exist_ok=True)
    (own / "state/status").touch()
    source = f"deb [signed-by={_keyring()}] {_mirror()} {suite} main\n"
    (own / "etc/sources.list").write_text(source)
    settings = {
        "Dir::Etc": own / "etc",
        "Dir::State": own / "state",
        "Dir::State::status": own / "state/status",
        "Dir::Cache": own / "cache",
        "APT::Architecture": architecture,
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",  # where it is root: else it could not write here
        "Acquire::Languages": "none",
    }
    options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    _output("apt-get", *options, "update")
    if dependencies:
        _output("apt-get", *options, "--yes", "--download-only", "install", *packages)
    else:
        _output("apt-get", *options, "download", *packages, folder=own / "cache/archives")
    with whole_folder(place) as scratch:
        for archive in sorted((own / "cache/archives").glob("*.deb")):
            _output("dpkg-deb", "--extract", str(archive), str(scratch))
    shutil.rmtree(own)
    return place


def _mirror() -> str:
    """Where Debian's packages come from."""
    if asked := os.environ.get(MIRROR):
        return asked
    known = _output("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    found = sorted(one for one in set(known.split()) if one.rstrip("/").endswith("/debian"))
    if not found:
        raise PipelineError(
            "apt knows no mirror of Debian, whose packages the systems are made of",
            fix=f"name one by the environment variable {MIRROR}",
        )
    return found[0]


def _keyring() -> Path:
    """Debian's keys: this machine's or, on Ubuntu, those of its package of them."""
    if KEYRING.exists():
        return KEYRING
    place = CACHE / "keys"
    if not place.exists():
        with whole_folder(place) as scratch:
            _output("apt-get", "download", "debian-archive-keyring", folder=scratch)
            (archive,) = scratch.glob("*.deb")
            _output("dpkg-deb", "--extract", str(archive), str(scratch))
    return place / KEYRING.relative_to("/")


def _output(*arguments: str, folder: Path | None = None) -> str:
    """What a program prints; `PipelineError` with its words if it is missing or fails."""
    if shutil.which(arguments[0]) is None:
        raise PipelineError(
            f"there is no {arguments[0]} on this {platform.system()}",
            fix="run it on Debian or Ubuntu: its systems are made of Debian's packages",
        )
    done = subprocess.run(arguments, cwd=folder, text=True, capture_output=True)
    if done.returncode:
        said = "; ".join(done.stderr.strip().splitlines()[-3:])
        raise PipelineError(f"it fails: {said}", where=" ".join(arguments[:3]))
    return done.stdout


if __name__ == "__main__":
    run(main)
