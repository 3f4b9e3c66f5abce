"""The DVC graph tells the truth: every stage depends on exactly the modules it imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def module_file(name: str) -> Path | None:
    """The file of a module of this repository, None for any other."""
    path = ROOT.joinpath(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def imported_names(file: Path) -> set[str]:
    """Dotted names that a file imports anywhere in it, the packages above them included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}: a relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parents = {
        ".".join(name.split(".")[:i]) for name in names for i in range(1, name.count(".") + 1)
    }
    return names | parents


def templates(file: Path) -> set[Path]:
    """Files beside a module that it names and reads: its code as much as its Python is."""
    names = [
        node.value
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    beside = {name for name in names if name.endswith(".j2") and "/" not in name}
    shipped = {name for name in names if name.startswith("on-device/")}
    return {file.parent / name for name in beside | shipped}


def closure(script: Path) -> set[Path]:
    """All files of this repository that a stage script imports, itself included."""
    found: set[Path] = set()
    waiting = [script, ROOT / "stages" / "__init__.py"]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found |= {file} | {path for path in templates(file) if path.exists()}
        waiting += filter(None, map(module_file, imported_names(file)))
    return found


def relative(files: set[Path]) -> set[str]:
    return {str(file.relative_to(ROOT)) for file in files}


def declared(stage: dict) -> set[str]:
    """The Python files among a stage's dependencies, folders opened."""
    files: set[Path] = set()
    for dep in stage["deps"]:
        path = ROOT / dep.split("${")[0]
        if dep.startswith(("pipeline", "stages")):
            files |= set(path.rglob("*.py")) if path.is_dir() else {path}
    return relative(files)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_exactly_the_modules_it_imports(name: str) -> None:
    needed = relative(closure(ROOT / "stages" / f"{name}.py"))
    assert declared(STAGES[name]) == needed


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_runs_the_script_of_its_name(name: str) -> None:
    assert STAGES[name]["cmd"].split()[:3] == ["python", "-m", f"stages.{name}"]


def test_the_gate_judges_and_never_makes_anything_run_but_the_report() -> None:
    readers = [name for name, stage in STAGES.items() if "gate" in stage.get("params", ())]
    assert readers == ["report"]


def test_every_stage_script_is_a_stage() -> None:
    scripts = {file.stem for file in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert scripts == set(STAGES)


def test_the_lock_file_holds_no_stage_that_is_gone() -> None:
    """DVC keeps them for ever, and reads and writes them after every stage."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    zoos = {kind: params[f"{kind}s"]["zoo"] for kind in ("teacher", "student")}
    expanded = {
        f"{name}@{item}" if kind else name
        for name, stage in STAGES.items()
        for kind in (next(iter(stage.get("matrix", ())), None),)
        for item in zoos.get(kind, [None])
    }
    locked = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    assert set(locked) <= expanded
