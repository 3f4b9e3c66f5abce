"""The table of versions in a bundle's README: each row again, in an environment of its own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from pipeline.backends.base.registry import backend, backend_names
from pipeline.bundle.records import Bundle
from tests.bundle.test_bundle import python

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
ROWS = [(name, version) for name in backend_names() for version in backend(name).proven]


@pytest.mark.parametrize("name", backend_names())
def test_the_table_ends_with_the_versions_of_this_project(name: str) -> None:
    """Whoever raises a pin or the newest Python has to prove the table anew."""
    proven = backend(name).proven
    extras = PROJECT["optional-dependencies"]
    if not proven:  # of a runtime that is not installed by default
        assert name not in extras["all"][0].partition("[")[2].rstrip("]").split(",")
        return
    pins = {pin for pins in extras.values() for pin in pins}
    assert list(proven.values())[-1] in pins
    pythons = [f"3.{minor}" for minor in range(8, 40)]
    supported = [one for one in pythons if one in SpecifierSet(PROJECT["requires-python"])]
    assert list(proven) == pythons[: pythons.index(supported[-1]) + 1]


@pytest.mark.parametrize("name", backend_names())
def test_a_bundles_command_takes_every_version_of_its_table(name: str) -> None:
    its = backend(name)
    module = "graph" if "graph" in its.install() else "runtime"
    asked = [
        Requirement(one) for command in its.install()[module] for one in shlex.split(command)[2:]
    ]
    for pin in its.proven.values():
        package, _, version = pin.partition("==")
        assert any(one.name == package and version in one.specifier for one in asked), pin


@pytest.mark.slow
@pytest.mark.parametrize(("name", "version"), ROWS, ids=lambda one: one)
def test_bundles_verify_on_the_python_of_a_row_with_what_pip_installs_there(
    name: str, version: str, shipped: dict[str, list[Path]], tmp_path: Path
) -> None:
    executable = tmp_path / "device/bin/python"
    uv = Path(sys.executable).with_name("uv")  # by which `make .venv/ready` installs
    make = [uv, "venv", "--quiet", "--seed", "--no-project", "--python", version]
    made = subprocess.run([*make, tmp_path / "device"], text=True, capture_output=True)
    if made.returncode and not os.environ.get("CI"):
        pytest.skip(f"uv neither finds nor downloads Python {version}: {made.stderr.strip()}")
    assert made.returncode == 0, made.stderr
    record = Bundle.read(shipped[name][0] / "bundle.json")
    options = ("--graph",) if "graph" in record.install else ()
    for command in record.install["graph" if options else "runtime"]:
        done = python("-m", *shlex.split(command), executable=executable)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    for folder in shipped[name]:
        result = tmp_path / "result.json"
        done = python(folder / "verify.py", *options, "--json", result, executable=executable)
        assert done.returncode == 0, f"{folder.name}: {done.stdout}{done.stderr}"
        read = json.loads(result.read_text())
        assert read["machine"]["python"].startswith(f"{version}.")
        assert read["runtime"] == dict([record.proven[version].split("==")])
        if not options:
            quick = ("--rounds", "1", "--min-runs", "1", "--min-seconds", "1e-6", "--batch", "0")
            done = python(folder / "bench.py", *quick, executable=executable)
            assert done.returncode == 0, done.stderr
