"""run.py of TensorRT against the API of 10.3, which a Jetson has, and of 11.4, the newest.

The stubs in typed/ declare what it uses. They are compared with NVIDIA's own bindings where these
are at hand: the wheels of `tensorrt-cu12-bindings`, which load beside empty libraries.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = ROOT / "pipeline/backends/tensorrt/run.py"
TYPED = Path(__file__).parent / "typed"
VERSIONS = ("10_3", "11_4")
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
FUNCTIONS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry", "getNvOnnxParserVersion", "getPluginRegistry",
    "initLibNvInferPlugins",
)  # fmt: skip
"""What the bindings need of the libraries in order to load; none of it is called."""
ASK = """
import json, sys
import tensorrt_bindings.tensorrt as trt
found = {}
for path in json.load(sys.stdin):
    value = trt
    for part in path.split("."):
        value = getattr(value, part)
    found[path] = int(value) if path.startswith("Network") else value.__doc__
class Log(trt.ILogger):
    def __init__(self):
        super().__init__()
    def log(self, severity, message):
        pass
try:
    trt.Builder(Log())
except TypeError as error:
    found["null builder"] = str(error)
json.dump(found, sys.stdout)
"""


class Typed(ast.NodeTransformer):
    """Gives `trt`, which run.py passes around as `Any`, the type of the module."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if node.name == "refusal":  # about TensorRT for RTX alone
            return node
        for argument in node.args.args:
            if argument.arg == "trt":
                argument.arg = "_given"
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        loads = ast.unparse(node) in ("trt = tensorrt()", "self._trt = trt")
        return None if loads else self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return ast.Name("trt") if ast.unparse(node) == "self._trt" else self.generic_visit(node)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy knows of Python's own library, for all runs."""
    return tmp_path_factory.mktemp("mypy")


def complaints(source: str, version: str, folder: Path, cache: Path) -> list[str]:
    """What mypy says of a source of run.py where `trt` is TensorRT of `version`."""
    tree = Typed().visit(ast.parse(source))
    for name in ("Network", "logger", "open_engine"):
        (node,) = (one for one in tree.body if getattr(one, "name", "") == name)
        assert re.search(r"\btrt\.\w", ast.unparse(node)), f"{name} does not use TensorRT"
    tree.body.insert(1, ast.parse("import tensorrt as trt").body[0])
    tree.body.sort(key=lambda one: not ast.unparse(one).startswith("from __future__"))
    (folder / "run.py").write_text(ast.unparse(ast.fix_missing_locations(tree)))
    stub = folder / "tensorrt.pyi"
    shutil.copyfile(TYPED / f"tensorrt_{version}.pyi", stub)
    command = [
        sys.executable, "-m", "mypy", "--config-file=", "--python-version=3.12",
        f"--cache-dir={cache}",
        "--follow-imports=skip", "--disable-error-code=var-annotated",  # NumPy is skipped
        "run.py", "tensorrt.pyi",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True)
    assert "checked 2 source files" in done.stdout or done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if ": error: " in line]


@pytest.mark.parametrize("version", VERSIONS)
def test_it_uses_tensorrt_as_declared(version: str, tmp_path: Path, cache: Path) -> None:
    assert complaints(RUN.read_text(), version, tmp_path, cache) == []


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("profile.set_shape(", "profile.set_shapes(", 'has no attribute "set_shapes"'),
        ("ignore_mismatch=", "ignore=", 'Unexpected keyword argument "ignore"'),
        ("execute_async_v3(device.stream)", "execute_async_v3()", "Missing positional argument"),
        ("self._builder.create_network(typed)", "self._builder.create_network('typed')", "str"),
        ("trt.ILogger.INTERNAL_ERROR", "trt.ILogger.FATAL", 'has no attribute "FATAL"'),
    ],
)
def test_another_use_is_noticed(
    right: str, wrong: str, complaint: str, tmp_path: Path, cache: Path
) -> None:
    source = RUN.read_text()
    assert right in source
    found = complaints(source.replace(right, wrong), "10_3", tmp_path, cache)
    assert found and all(complaint in line for line in found)


def declared(version: str) -> dict[str, list[str] | int]:
    """By CLASS.METHOD its parameters; by the name of a creation flag its number."""
    found: dict[str, list[str] | int] = {}
    for kind in ast.parse((TYPED / f"tensorrt_{version}.pyi").read_text()).body:
        for node in kind.body if isinstance(kind, ast.ClassDef) else ():
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
                if not node.decorator_list:
                    arguments = [argument.arg for argument in node.args.args]
                    found[f"{kind.name}.{node.name}"] = arguments
            elif isinstance(node, ast.Assign) and kind.name.startswith("Network"):
                found[f"{kind.name}.{ast.unparse(node.targets[0])}"] = ast.literal_eval(node.value)
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_the_declarations_are_those_of_nvidias_bindings(version: str, tmp_path: Path) -> None:
    """TENSORRT_BINDINGS: a folder with the unpacked wheels of both versions, 10_3 and 11_4."""
    place = os.environ.get("TENSORRT_BINDINGS")
    if not place:
        pytest.skip("set TENSORRT_BINDINGS to a folder that has the wheels of "
                    "tensorrt-cu12-bindings unpacked in 10_3 and 11_4")  # fmt: skip
    source = tmp_path / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    for name in LIBRARIES:
        library = f"lib{name}.so.{version.partition('_')[0]}"
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", tmp_path / library]
        subprocess.run([*command, source], check=True)
    ours = declared(version)
    assert len(ours) > 20
    variables = {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(Path(place) / version)}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env=os.environ | variables, input=json.dumps(list(ours)), text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    assert "nullptr" in theirs.pop("null builder")  # what `Network` makes a message of
    for path, parameters in ours.items():
        name = path.partition(".")[2]
        if isinstance(parameters, int):
            assert theirs[path] == parameters, path
            continue
        signatures = re.findall(rf"^(?:\d+\. )?{name}\((.*)\) ->", theirs[path], re.M)
        assert any(takes(signature, parameters) for signature in signatures), theirs[path]


def takes(signature: str, parameters: list[str]) -> bool:
    """Whether what pybind11 declares has these parameters first, and defaults for all others."""
    known = re.findall(r"(?:^|, )(\w+): ([^=]*?)(=[^,]*)?(?=, \w+:|$)", signature)
    names = [name for name, _, _ in known]
    return names[: len(parameters)] == parameters and all(
        default for _, _, default in known[len(parameters) :]
    )
