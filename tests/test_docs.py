"""What the documentation names exists: files, links, commands, stages and keys of params.yaml."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.cli import DvcParserError
from dvc.cli.parser import get_main_parser

from pipeline.backends.base.registry import backend, backend_names
from pipeline.cli.commands import _parser
from pipeline.cli.params import Params, load_params
from pipeline.core.params import _known_keys, _merge
from pipeline.distill.losses.registry import loss_names
from pipeline.search.params import read_search

ROOT = Path(__file__).parents[1]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *(ROOT / folder / "README.md" for folder in ("data/source", "data/checkpoints")),
        *(
            ROOT / folder / "README.md"
            for folder in (
                "metrics/attribution",
                "metrics/devices",
                "metrics/robustness",
                "benchmarks",
            )
        ),
    ]
)
FOLDERS = ("pipeline/", "stages/", "tests/", "docs/", "data/", "metrics/", "models/", "reports/",
           "benchmarks/", "study/", ".github/", ".ci/", ".work/")  # fmt: skip
PLACEHOLDER = re.compile(r"\b[A-Z]+(-[A-Z]+)*\b")
"""Stands for a name, as STUDENT-BACKEND-PRECISION does."""
BUNDLE_SCRIPTS = {
    file.name: file
    for pattern in ("bundle/on-device/**/*.py", "backends/*/*.py")
    for file in ROOT.glob(f"pipeline/{pattern}")
}

each_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    text = page.read_text()
    return [
        m[2] for m in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if m[1] in languages
    ]


def code(page: Path) -> list[str]:
    """The inline code of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", text)


def commands(page: Path) -> list[list[str]]:
    """The words of every command, inline or in a block, without variables before it."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    lines += [piece for piece in code(page) if " " in piece]
    found = []
    for line in lines:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # inline code that is no command
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            variable = words.pop(0).partition("=")[0]
            assert is_read(variable), f"{page}: nothing reads {variable}"
        if words:
            found.append(words)
    return found


def is_read(variable: str) -> bool:
    """Whether our code, or a tool that everybody knows, reads an environment variable."""
    sources = [*ROOT.glob("pipeline/**/*.py"), ROOT / "Makefile", ROOT / ".github/gate.sh"]
    known = ("PIP_EXTRA_INDEX_URL", "OMP_NUM_THREADS")
    return variable in known or any(variable in file.read_text() for file in sources)


def outputs() -> list[str]:
    """What stages write, with `*` for the names of a matrix."""
    found = []
    for stage in DVC["stages"].values():
        for kind in ("outs", "metrics", "plots"):
            for out in stage.get(kind, ()):
                name = next(iter(out)) if isinstance(out, dict) else out
                found.append(re.sub(r"\$\{[^}]+\}", "*", name))
    return found


def exists(path: str) -> bool:
    """Whether a path is in the repository, or is or will be part of what a stage writes."""
    path = PLACEHOLDER.sub("*", path).rstrip("/")
    if path.startswith(".work") or list(ROOT.glob(path)):
        return True
    return any(
        written == path or written.startswith(f"{path}/") or Path(path).match(written)
        or path.startswith(f"{written}/")
        for written in outputs()
    )  # fmt: skip


def stage_exists(name: str) -> bool:
    """Whether `name` is a stage, or one of a matrix as STAGE@PART-PART."""
    stage, _, parts = name.partition("@")
    if stage not in DVC["stages"]:
        return False
    known = {*PARAMS["students"]["zoo"], *PARAMS["teachers"]["zoo"], *backend_names()}
    return set(filter(None, parts.split("-"))) <= known


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in [*ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md", ROOT / "LICENSE"]:
        assert f"({page.relative_to(ROOT)})" in readme


def test_the_readme_marks_where_its_results_stand() -> None:
    readme = (ROOT / "README.md").read_text()
    before, table, after = re.split("<!-- /?results -->", readme)
    assert table.count("\n| mnv") and "\n| mnv" not in before + after


def heading_ids(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{target} is not there"
        assert file.is_relative_to(ROOT)
        if anchor:
            assert anchor in heading_ids(file), f"{target}: there is no such heading"


@each_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    words = [word for piece in code(page) for word in piece.split()]
    words += [word for command in commands(page) for word in command]
    for word in words:
        if word.startswith(FOLDERS) and "NAME" not in word and "/onnx_reference" not in word:
            assert exists(word), f"{word} does not exist"


@each_page
def test_every_command_exists(page: Path) -> None:
    targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.M)
    for words in commands(page):
        line = shlex.join(words)
        match words:
            case ["python", "-m", "pipeline", "COMMAND"]:
                pass
            case ["python", "-m", "pipeline", *arguments]:
                try:
                    _parser().parse_args(arguments)
                except SystemExit:
                    pytest.fail(f"{line}: not understood")
            case ["torchrun", *_, "-m", module, "--student", _]:
                assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), line
            case ["python", "-m", module, *_] if module.startswith(("stages.", "benchmarks.")):
                assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), line
            case ["python", script, *options] if script.endswith(".py"):
                text = BUNDLE_SCRIPTS[Path(script).name].read_text()
                assert all(f'"{o}"' in text for o in options if o.startswith("--")), line
            case ["make", target, *_]:
                assert target in targets, line
            case ["dvc", command, *arguments] if words[2:]:
                try:
                    parsed = get_main_parser().parse_args([command, *arguments])
                except (DvcParserError, SystemExit):
                    pytest.fail(f"{line}: DVC does not understand it")
                if command in ("repro", "commit"):
                    assert all(map(stage_exists, parsed.targets)), line


@each_page
def test_every_yaml_snippet_is_valid_in_params(page: Path, tmp_path: Path) -> None:
    if page.name == "extending.md":
        return  # tests/test_extending.py runs its snippets, which name parts of other packages
    for snippet in blocks(page, "yaml"):
        if snippet.startswith("# search.yaml"):
            (tmp_path / "search.yaml").write_text(snippet)
            read_search(tmp_path / "search.yaml")
            continue
        file = tmp_path / "params.yaml"
        file.write_text(yaml.safe_dump(_merge(PARAMS, yaml.safe_load(snippet))))
        load_params(file)


@each_page
def test_every_key_of_params_that_is_named_exists(page: Path) -> None:
    for piece in code(page):
        first, *rest = piece.split(":")[0].split(".")
        known = first in Params.model_fields and re.fullmatch(r"[a-z_.0-9]+", piece.split(":")[0])
        if not known or not rest or rest[-1] in ("py", "yaml", "md", "svg", "json"):
            continue
        assert has_key(PARAMS[first], first, rest), f"{page.name}: there is no `{piece}`"


def has_key(tree: Any, group: str, keys: list[str]) -> bool:
    """Whether params.yaml has a key, or its type knows one that the file leaves out."""
    *path, last = keys
    for key in path:
        if key not in tree:
            return False
        tree = tree[key]
    if group == "backends" and path:
        return last in backend(path[0]).settings.model_fields
    return last in tree or last in _known_keys(Params, (group, *path))


def test_every_registered_loss_and_backend_is_documented() -> None:
    named = set(code(ROOT / "docs" / "distillation.md"))
    assert set(loss_names()) <= named
    quantizers = (ROOT / "docs" / "int8.md").read_text()
    assert all(f"| {backend(name).title} |" in quantizers for name in backend_names())


def test_every_room_is_documented_in_the_order_of_imports() -> None:
    from tests.test_graph import ROOMS

    text = (ROOT / "docs" / "architecture.md").read_text()
    assert re.findall(r"^\| \[(\w+)\]", text, re.M) == list(ROOMS)


def test_the_hosted_workflow_runs_the_oldest_and_the_newest_python_that_the_pins_allow() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    oldest, newest = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    after = f"3.{int(newest.split('.')[1]) + 1}"
    assert project["requires-python"] == f">={oldest},<{after}"
