"""`target: micro` against TFLite Micro's own interpreter."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.backends.base.job import Compiled, Job
from pipeline.backends.base.params import Backends
from pipeline.backends.tflite import spec
from pipeline.backends.tflite.compile import Compiler
from pipeline.backends.tflite.convert import convert
from pipeline.backends.tflite.micro_sources import _literal, method
from pipeline.backends.tflite.run import open_interpreter
from pipeline.backends.tflite.spec import BACKEND, Settings
from pipeline.core.errors import PipelineError

Made = Callable[[str, str], tuple[Path, Compiled]]
Compile = Callable[[str], tuple[Path, Compiled]]


@pytest.fixture(autouse=True, scope="module")
def runtime() -> None:
    reason = "tflite-micro is not installed: pip install -e '.[micro]'"
    pytest.importorskip("tflite_micro", reason=reason)


@pytest.fixture(scope="module")
def compiled(job: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """The int8 student for a microcontroller, by `hard_swish`."""

    @cache
    def make(hard_swish: str) -> tuple[Path, Compiled]:
        folder = tmp_path_factory.mktemp(hard_swish)
        settings = Settings(precisions=("int8",), hard_swish=hard_swish, target="micro")
        made = Compiler(settings).compile(job("int8", "tflite"), folder)
        return folder / made.model_file, made

    return make


@pytest.mark.parametrize("hard_swish", ["decomposed", "keep"])
def test_logits_are_those_of_literts_reference_kernels(compiled: Compile, hard_swish: str) -> None:
    file, made = compiled(hard_swish)
    micro = made.micro
    assert micro and micro.runtime.startswith("tflite-micro 0.")
    assert micro.max_steps == 0  # one step is allowed, none was ever seen
    assert micro.images == 64 and micro.same_class >= 62
    nodes = [node["op_name"] for node in open_interpreter(str(file))._get_ops_details()]
    assert micro.operators == {n: nodes.count(n) for n in {*nodes} - {"DELEGATE"}}
    assert any(f"a tensor arena of {micro.arena_bytes:,} bytes" in note for note in made.notes)


def test_the_arena_is_the_smallest_that_works(compiled: Compile) -> None:
    from tflite_micro import runtime

    file, made = compiled("decomposed")
    assert made.micro
    content, size = file.read_bytes(), made.micro.arena_bytes
    assert runtime.Interpreter.from_bytes(content, arena_size=size) is not None
    with pytest.raises(RuntimeError, match="allocate"):
        runtime.Interpreter.from_bytes(content, arena_size=size - 16)


def test_the_target_changes_nothing_of_the_model(compiled: Compile, made: Made) -> None:
    plain, usual = made("tflite", "int8")
    assert compiled("decomposed")[0].read_bytes() == plain.read_bytes()
    assert usual.micro is None and usual.notes == ()


def test_float_is_compiled_as_for_a_cpu(job: Callable[..., Job], tmp_path: Path) -> None:
    settings = Settings(precisions=("fp32", "int8"), target="micro")
    assert Compiler(settings).compile(job("fp32", "tflite"), tmp_path).micro is None


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_every_operator_that_it_lacks_is_named(
    capfd: pytest.CaptureFixture[str],
) -> None:
    from pipeline.backends.tflite.micro import report

    class Odd(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            flat = image.flatten(1)
            return torch.atan2(flat, flat + 2) + torch.sign(flat) * torch.relu(flat)

    content = convert(Odd(), torch.rand(2, 4, 4, 1))
    capfd.readouterr()
    with pytest.raises(PipelineError) as raised:
        report(content, np.zeros((1, 4, 4, 1), np.uint8), "compile of odd/tflite/int8")
    assert str(raised.value).startswith(
        "compile of odd/tflite/int8: TFLite Micro has no kernel for ATAN2, SIGN"
    )
    assert capfd.readouterr().err == ""


def test_a_model_that_it_does_not_run_is_refused_in_its_words(compiled: Compile) -> None:
    from ai_edge_litert.schema_py_generated import TensorType

    from pipeline.backends.tflite.convert import edited
    from pipeline.backends.tflite.micro import report

    with edited(compiled("decomposed")[0].read_bytes()) as edit:
        graph = edit.model.subgraphs[0]
        graph.tensors[graph.inputs[0]].type = TensorType.INT64
    with pytest.raises(PipelineError, match=r"TFLite Micro cannot run it: .*quantize") as raised:
        report(edit.content, np.zeros((1, 28, 28, 3), np.uint8), "compile of odd/tflite/int8")
    assert "set `target: cpu`" in str(raised.value)


def test_logits_that_differ_by_more_than_a_step_are_refused(
    compiled: Compile, job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.backends.tflite import micro

    file, images = compiled("decomposed")[0], job("int8").calibration[:4]
    right, arena = micro.run(file.read_bytes(), images, "")
    wrong = right + np.float32(2 * micro._Reference(file.read_bytes()).step)
    monkeypatch.setattr(micro, "run", lambda *_: (wrong, arena))
    with pytest.raises(PipelineError, match=r"differ from LiteRT's by 2\.0 int8 steps"):
        micro.report(file.read_bytes(), images, "compile of x")


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "MICRO", "no-such-package")
    BACKEND.check(Settings(precisions=("int8",)))
    with pytest.raises(PipelineError, match="no-such-package is not installed") as raised:
        BACKEND.check(Settings(precisions=("int8",), target="micro"))
    assert "pip install -e '.[micro]'" in str(raised.value)


def test_a_microcontroller_needs_int8() -> None:
    tree = {"enabled": ["tflite"], "tflite": {"precisions": ["fp32"], "target": "micro"}}
    with pytest.raises(PipelineError, match=r"backends\.tflite.*`target: micro` is for int8"):
        Backends.model_validate(tree).settings("tflite")


def test_operators_are_added_by_the_names_of_the_resolver() -> None:
    place = os.environ.get("TFLITE_MICRO")
    if not place:
        pytest.skip("set TFLITE_MICRO to a checkout of tflite-micro")
    header = (Path(place) / "tensorflow/lite/micro/micro_mutable_op_resolver.h").read_text()
    pattern = r"TfLiteStatus (Add\w+)\([^{]*\{\s*return AddBuiltin\(\s*BuiltinOperator_(\w+)"
    known = re.findall(pattern, header)
    assert len(known) > 90
    assert [(method(operator), operator) for _, operator in known] == known


@pytest.mark.parametrize(
    ("operator", "name"),
    [
        ("CONV_2D", "AddConv2D"),
        ("DEPTHWISE_CONV_2D", "AddDepthwiseConv2D"),
        ("PADV2", "AddPadV2"),
        ("HARD_SWISH", "AddHardSwish"),
    ],
)
def test_methods_have_the_names_that_the_header_had(operator: str, name: str) -> None:
    assert method(operator) == name


def test_labels_are_c_strings_whatever_they_hold() -> None:
    assert _literal('a "b"\\?1') == '"a \\042b\\042\\134\\0771"'
    assert _literal("é1") == '"\\303\\2511"'
