"""Parts of other installed packages: found by their entry points, each mistake is one error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pipeline.backends.base.registry import backend, backend_names, title
from pipeline.core import plugins
from pipeline.core.errors import PipelineError
from pipeline.distill.losses.registry import find_loss, loss_names
from pipeline.distill.params import LossTerm

Install = Callable[[str, str, dict[str, str], str], None]

LOSS = """
from pipeline.distill.losses.registry import loss

@loss("logits", positive=("power",))
def lp(student, teacher, *, power=1.0):
    return ((student - teacher).abs() ** power).mean()

def undecorated(student, teacher):
    return student.sum()
"""
SPEC = """
from typing import Literal
from pipeline.backends.base.spec import FLOAT32, Backend, BackendSettings

class Settings(BackendSettings):
    precisions: tuple[Literal["fp32"], ...]

class Abacus(Backend):
    name, title, colour, hub_library = "abacus", "Abacus", "#000000", "abacus"
    packages = runtimes = ("abacus-runtime",)
    settings, tolerances = Settings, {"fp32": FLOAT32}

BACKEND = Abacus()
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a package of one module on sys.path, with metadata as pip writes it."""

    def put(package: str, kind: str, points: dict[str, str], code: str) -> None:
        (tmp_path / f"{package}.py").write_text(code)
        metadata = tmp_path / f"{package}-1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        lines = [f"[edgestill.{kind}]", *(f"{name} = {value}" for name, value in points.items())]
        (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
        plugins._found.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    yield put
    monkeypatch.undo()
    for module in list(sys.modules):
        if module.startswith("plugin_"):
            del sys.modules[module]
    plugins._found.cache_clear()


def test_a_loss_of_another_package_is_one_more_loss(install: Install) -> None:
    before = loss_names()
    install("plugin_lp", "losses", {"lp": "plugin_lp:lp"}, LOSS)
    assert loss_names() == (*before, "lp")
    found = find_loss(LossTerm(name="lp", weight=1.0, options={"power": 2.0}))
    value = found(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2), power=2.0)
    assert float(value) == 5
    with pytest.raises(PipelineError, match="`power` of `lp` must be above 0"):
        find_loss(LossTerm(name="lp", weight=1.0, options={"power": 0.0}))


def test_a_backend_of_another_package_is_one_more_backend(install: Install) -> None:
    assert title("abacus") == "abacus"
    install("plugin_abacus", "backends", {"abacus": "plugin_abacus:BACKEND"}, SPEC)
    assert backend_names()[-1] == "abacus" and title("abacus") == "Abacus"
    its = backend("abacus")
    assert its.precisions == ("fp32",)
    assert its.unmeasurable() == "the package abacus-runtime is not installed"
    with pytest.raises(PipelineError, match="no `abacuss` among the backends; did you mean `aba"):
        backend("abacuss")


@pytest.mark.parametrize("names", [("lp", "lp"), ("kl", "other")])
def test_a_name_that_two_packages_register_is_an_error(
    install: Install, names: tuple[str, str]
) -> None:
    """Another package may not take the name of one of the project's own parts either."""
    for number, name in enumerate(names):
        package = f"plugin_{number}"
        install(package, "losses", {name: f"{package}:lp"}, LOSS)
    ours = "pipeline.distill.losses.logits:kl and plugin_0:lp"
    values = ours if names[0] == "kl" else r"plugin_\d:lp and plugin_\d:lp"
    with pytest.raises(PipelineError, match=f"register `{names[0]}`: {values}"):
        loss_names()


@pytest.mark.parametrize(
    ("value", "code", "said"),
    [
        ("plugin_broken:lpp", LOSS, "has no attribute 'lpp'"),
        ("plugin_gone:lp", LOSS, "No module named 'plugin_gone'"),
        ("plugin_broken:lp", "import no_such_module", "No module named 'no_such_module'"),
        ("plugin_broken:lp", "def lp(:", "invalid syntax"),
        ("plugin_broken:undecorated", LOSS, "not an object of the type Loss"),
    ],
)
def test_a_broken_entry_point_is_one_clear_error(
    install: Install, value: str, code: str, said: str
) -> None:
    install("plugin_broken", "losses", {"lp": value}, code)
    assert "lp" in loss_names()  # which loads none of them
    with pytest.raises(PipelineError, match="`lp` cannot be loaded: ") as caught:
        find_loss(LossTerm(name="lp", weight=1.0))
    assert said in caught.value.what
    assert caught.value.where == f"edgestill.losses: {value}"


def test_a_class_in_place_of_an_instance_is_refused(install: Install) -> None:
    install("plugin_class", "backends", {"abacus": "plugin_class:Abacus"}, SPEC)
    with pytest.raises(PipelineError, match="not an object of the type Backend"):
        backend("abacus")
