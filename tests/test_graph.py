"""The DVC graph tells the truth: every stage depends on exactly the rooms that it imports."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.core import plugins

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "dvc.yaml").read_text()
STAGES = yaml.safe_load(TEXT)["stages"]
ROOMS = (  # the order of docs/architecture.md, the lowest first
    "core", "data", "networks", "training", "distill", "export", "backends",
    "accuracy", "compile", "attribution", "robustness", "latency", "prune", "bundle", "report",
    "gate", "search", "cli",
)  # fmt: skip
SPEC_ALONE = ("collect", "report")
"""Stages that ask backends for their names, and never load one."""


def module_file(name: str) -> Path | None:
    """The file of a module of this repository, None for any other."""
    path = ROOT.joinpath(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def imports(file: Path) -> set[Path]:
    """Modules of this repository that a file imports anywhere in it; a package if it has code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}: a relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {found for name in names if (found := module_file(name))}


def registered(kinds: set[str]) -> set[Path]:
    """Modules of this repository that `core.plugins` finds by these kinds' entry points."""
    points = [point for kind in kinds for point in plugins._found(kind).values()]
    return {file for point in points if (file := module_file(point.value.partition(":")[0]))}


def closure(stage: str) -> set[Path]:
    """All modules that a stage needs: what it imports, and what it finds by name."""
    found: set[Path] = set()
    waiting = [ROOT / "stages" / f"{stage}.py"]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        waiting += imports(file)
        if kinds := set(re.findall(r'^KIND = "(\w+)"$', file.read_text(), re.M)):
            waiting += registered(kinds)
        if file.name == "spec.py" and file.parent.name != "base" and stage not in SPEC_ALONE:
            waiting += file.parent.glob("*.py")
    return {file for file in found if file.name not in ("build_engine.py", "phone.py")}


def room(file: Path) -> str | None:
    """The folder that dvc.yaml names for a module; None for a stage script and a bare package."""
    parts = file.relative_to(ROOT / "pipeline").parts if "pipeline" in file.parts else ()
    if len(parts) < 2:
        return None
    return "/".join(("pipeline", *parts[: 2 if parts[0] == "backends" and len(parts) > 2 else 1]))


def needed(stage: str) -> set[str]:
    """The rooms that a stage needs, each backend's folder by itself."""
    return {found for file in closure(stage) if (found := room(file))} - {"pipeline/backends"}


def declared(stage: str) -> set[str]:
    """The rooms among a stage's dependencies, each backend's folder by itself."""
    found = {dep for dep in STAGES[stage]["deps"] if dep.startswith("pipeline")}
    backends = {str(f.parent.relative_to(ROOT)) for f in ROOT.glob("pipeline/backends/*/*.py")}
    every = backends - {"pipeline/backends/base"}
    if "pipeline/backends" in found:
        found = found - {"pipeline/backends"} | backends
    if "pipeline/backends/${item.backend}" in found:
        found = found - {"pipeline/backends/${item.backend}"} | every
    return found


ALWAYS = {name for name, stage in STAGES.items() if stage.get("always_changed")}
"""Stages that run whatever changed, so that they need no dependencies."""


@pytest.mark.parametrize("stage", sorted(STAGES.keys() - ALWAYS))
def test_a_stage_depends_on_exactly_the_rooms_it_imports(stage: str) -> None:
    assert declared(stage) == needed(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_its_script_and_runs_it(stage: str) -> None:
    assert stage in ALWAYS or f"stages/{stage}.py" in STAGES[stage]["deps"]
    assert STAGES[stage]["cmd"].split()[:3] == ["python", "-m", f"stages.{stage}"]


def test_the_graph_names_rooms_and_no_module() -> None:
    assert not re.search(r"pipeline/[\w/]+\.\w+", TEXT)
    assert len(TEXT.splitlines()) <= 400


def test_packages_hold_no_code_that_a_stage_could_miss() -> None:
    for file in (ROOT / "pipeline/__init__.py", ROOT / "pipeline/backends/__init__.py"):
        (docstring,) = ast.parse(file.read_text()).body
        assert isinstance(docstring, ast.Expr)


@pytest.mark.parametrize("name", ROOMS)
def test_imports_point_downwards(name: str) -> None:
    above = set(ROOMS[ROOMS.index(name) + 1 :])
    for file in (ROOT / "pipeline" / name).rglob("*.py"):
        if "on-device" in file.parts:
            continue
        for other in imports(file):
            parts = other.relative_to(ROOT).parts
            assert parts[0] != "pipeline" or parts[1] not in above, f"{file} imports {other}"


def test_every_room_has_its_place_in_the_order() -> None:
    folders = {path.parent.name for path in ROOT.glob("pipeline/*/__init__.py")}
    assert folders == set(ROOMS)


def test_the_gate_judges_and_makes_no_stage_run() -> None:
    assert not [name for name, stage in STAGES.items() if "gate" in stage.get("params", ())]


def test_every_stage_script_is_a_stage() -> None:
    scripts = {file.stem for file in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert scripts == set(STAGES)


def test_the_lock_file_holds_no_stage_that_is_gone_and_is_short() -> None:
    """DVC keeps them for ever, and reads and writes them after every stage."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    zoos = {kind: list(params[f"{kind}s"]["zoo"]) for kind in ("teacher", "student")}
    zoos["backend"] = params["backends"]["enabled"]
    expanded = set()
    for name, stage in STAGES.items():
        items = [""]
        for kind in stage.get("matrix", ()):
            items = [f"{item}-{one}" if item else one for item in items for one in zoos[kind]]
        expanded |= {f"{name}@{item}" if item else name for item in items}
    text = (ROOT / "dvc.lock").read_text()
    assert set(yaml.safe_load(text)["stages"]) <= expanded
    assert len(text.splitlines()) <= 105 * len(yaml.safe_load(text)["stages"])


def test_git_tracks_no_file_that_dvc_keeps() -> None:
    """DVC refuses an output that git tracks, at the end of its stage."""
    outs = [out for stage in STAGES.values() for out in stage.get("outs", ())]
    kept = [out.split("${")[0] for out in outs if isinstance(out, str)]
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    tracked = subprocess.check_output(["git", "ls-files", "--", *kept], cwd=ROOT, text=True)
    ignored = (ROOT / ".dvcignore").read_text().split()
    assert [file for file in tracked.split() if f"/{file}" not in ignored] == []


def commands(tree: object) -> list[str]:
    """Every `cmd` in a dvc.yaml."""
    if not isinstance(tree, dict):
        return []
    own = [tree["cmd"]] if isinstance(tree.get("cmd"), str) else []
    return own + [found for value in tree.values() for found in commands(value)]


@pytest.mark.parametrize("file", ["dvc.yaml", "study/dvc.yaml"])
def test_no_value_of_a_file_gets_into_a_command_that_a_shell_runs(file: str) -> None:
    found = commands(yaml.safe_load((ROOT / file).read_text()))
    assert found and not [command for command in found if "$" in command]


MATRICES = {name: list(stage["matrix"]) for name, stage in STAGES.items() if "matrix" in stage}


@pytest.mark.parametrize("stage", MATRICES)
def test_a_stage_of_a_matrix_takes_its_names_in_order_and_after_their_check(stage: str) -> None:
    script = (ROOT / "stages" / f"{stage}.py").read_text()
    (call,) = re.findall(r"parse_names\(([^)]*)\)", script)
    assert ast.literal_eval(f"[{call}]") == MATRICES[stage]
    (checked,) = STAGES["names"]["outs"]
    assert checked in STAGES[stage]["deps"]
    lists = [its for stage in STAGES.values() for its in stage.get("matrix", {}).values()]
    asked = {its.removeprefix("${").removesuffix("}") for its in lists}
    assert set(STAGES["names"]["params"]) == asked
