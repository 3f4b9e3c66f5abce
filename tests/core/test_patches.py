"""Each patch of another library does what it says, and nothing before it is called."""

from __future__ import annotations

import ast
import configparser
import ctypes
import getpass
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import library
from torch.nn import functional as F

from pipeline.core import patches

ROOT = Path(__file__).parents[2]
FILES = [file for room in ("pipeline", "stages") for file in (ROOT / room).rglob("*.py")]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def python(code: str, **environment: str) -> str:
    """What `code` prints in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def on_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: not those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, FUNCTIONS):
            yield node
            yield from on_import(node)


def imports_timm(node: ast.AST) -> bool:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
    return any(name.split(".")[0] == "timm" for name in names)


def test_no_module_imports_timm_when_it_is_imported() -> None:
    for file in FILES:
        assert not any(map(imports_timm, on_import(ast.parse(file.read_text())))), file


def test_every_function_that_uses_timm_imports_it_by_the_patch() -> None:
    found = 0
    for file in FILES:
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, FUNCTIONS) and any(map(imports_timm, ast.walk(function))):
                found += 1
                calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
                names = {call.id for call in calls if isinstance(call, ast.Name)}
                assert "import_timm" in names, f"{file}: {ast.unparse(function)}"
    assert found


def test_the_input_grid_needs_no_torch() -> None:
    heavy = "{'torch', 'timm', 'torchvision'} & set(sys.modules)"
    assert python(f"import sys, pipeline.networks.grid; print({heavy} or 'none')") == "none"


def test_importing_a_module_applies_no_patch_and_then_torchvision_and_timm_load() -> None:
    code = """
import importlib, pkgutil, sys
import torch
import pipeline
from pipeline.core import patches
rooms = ("core", "data", "networks", "training", "distill", "export", "int8")
for found in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
    if found.name.split(".")[1] in rooms:
        importlib.import_module(found.name)
names = ('import_timm', 'keep_freed_memory', 'muon_in_float32', 'muon_by_shape')
cached = [getattr(patches, name) for name in names]
assert "pipeline.training.loop" in sys.modules
assert not any(patch.cache_info().misses for patch in cached)
assert torch.nn.functional.conv2d is torch.conv2d
assert not {"timm", "torchvision"} & set(sys.modules)
transforms = patches.import_torchvision().transforms  # beside the torch that is installed
assert patches.import_timm() is patches.import_timm()
print(transforms.Resize(4).size, "resnet18" in patches.import_timm().list_models())
"""
    assert python(code) == "4 True"


def test_torchvisions_operators_are_declared_where_its_native_code_does_not_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Simulated, as only one of the two builds is installed."""
    declared: list[str] = []

    def load(name: str) -> ModuleType:
        if not declared:
            raise RuntimeError("operator torchvision::nms does not exist")
        return ModuleType(name)

    monkeypatch.setattr(importlib, "import_module", load)
    monkeypatch.setattr(library, "define", lambda name, _schema: declared.append(name))
    assert patches.import_torchvision().__name__ == "torchvision"
    assert declared == ["torchvision::nms", "torchvision::qnms"]


def test_another_failure_of_torchvision_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> ModuleType:
        raise RuntimeError(f"{name} is broken")

    monkeypatch.setattr(importlib, "import_module", load)
    with pytest.raises(RuntimeError, match="torchvision is broken"):
        patches.import_torchvision()


def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    """Without the patch, every large tensor gets new pages of the system: page faults."""
    code = """
import resource, torch
from pipeline.core.patches import keep_freed_memory
{patch}
for step in range(30):
    if step == 25:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    plain, kept = (int(python(code.format(patch=call))) for call in ("", "keep_freed_memory()"))
    assert kept < plain / 4


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    patches.keep_freed_memory.__wrapped__()


def test_muon_orthogonalises_in_float32() -> None:
    code = """
import torch
from pipeline.core.patches import import_timm, muon_in_float32
import_timm()
from timm.optim import muon
arguments = torch.eye(4), 5, [(2.0, -1.5, 0.5)]
print(muon.zeropower_via_newtonschulz(*arguments).dtype)
muon_in_float32()
print(muon.zeropower_via_newtonschulz(*arguments).dtype)
"""
    assert python(code).split() == ["torch.bfloat16", "torch.float32"]


def test_muon_of_all_weights_of_a_shape_is_that_of_each() -> None:
    code = """
import torch
from pipeline.core.patches import import_timm, muon_by_shape, muon_in_float32
import_timm()
from timm.optim import Muon
muon_in_float32()
shapes = [(8, 4, 3, 3), (4, 8), (8, 36), (4, 8), (8, 4, 3, 3), (5,)]
def trained(**options):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    weights[0].data = weights[0].data.to(memory_format=torch.channels_last)
    optimizer = Muon(weights, **{"lr": 0.02, "weight_decay": 0.1} | options)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
    return weights
kinds = [{}, {"nesterov": True}, {"conv_mode": "batched"}, {"adjust_lr_fn": None}]
before = [trained(**kind) for kind in kinds]
muon_by_shape()
kinds[0]["lr"] = torch.tensor(0.02)
for old, kind in zip(before, kinds):
    for one, other in zip(old, trained(**kind)):
        torch.testing.assert_close(one, other)
print("same")
"""
    assert python(code) == "same"


def test_a_convolution_is_replaced_within_the_block_alone() -> None:
    image, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
    with pytest.raises(ZeroDivisionError), patches.conv2d(lambda *_, **__: "replaced"):
        assert F.conv2d(image, weight) == "replaced"
        raise ZeroDivisionError
    assert F.conv2d is torch.conv2d


def test_no_command_lets_a_runtime_report_or_leave_an_identifier(tmp_path: Path) -> None:
    code = """
from pipeline.core.errors import run
def main():
    import onnxruntime.quantization
    import openvino
    from openvino.tools import ovc
    from huggingface_hub import constants
    print(constants.HF_HUB_DISABLE_TELEMETRY)
run(main)
"""
    reporting = {"ORT_DISABLE_TELEMETRY": "0", "HF_HUB_DISABLE_TELEMETRY": "0"}
    assert python(code, HOME=str(tmp_path), XDG_CACHE_HOME="", **reporting) == "True"
    assert not list(tmp_path.iterdir())


def test_dvc_reports_nothing_in_this_repository() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / ".dvc/config")
    assert config["core"]["analytics"] == config["core"]["check_update"] == "false"


def test_a_user_without_a_passwd_entry_gets_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setenv("USER", "somebody")
    patches.name_user()
    assert os.environ["USER"] == "somebody"
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    patches.name_user()
    assert getpass.getuser() == f"uid-{os.getuid()}"
    monkeypatch.delenv("USER")
