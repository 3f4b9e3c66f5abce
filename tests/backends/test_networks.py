"""Networks of timm as they are, from the export to every backend: compiled, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.networks import FAMILIES, decibels
from pipeline.backends.base.params import Backends
from pipeline.backends.base.registry import backend, backend_names
from pipeline.compile.untrained import Rehearsed, Shape, compile_untrained, untrained
from pipeline.core.errors import PipelineError
from pipeline.networks.params import Network

NAMES = backend_names()
EVERYTHING = Backends.model_validate(
    {"enabled": NAMES} | {name: {"precisions": backend(name).precisions} for name in NAMES}
)
TRANSFORMER = Network(
    arch="vit_tiny_patch16_224",
    args={"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    | {"global_pool": "avg"},
)
"""With a class token and layer norms. An untrained token is tiny; the mean of all tokens is not."""


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    folder = tmp_path_factory.mktemp("student")
    return untrained("small", TRANSFORMER, Shape(16, 1, 3), 20, folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "tflite"])
def test_a_plain_network_compiles_and_passes_the_checks_of_int8(
    student: Rehearsed, name: str
) -> None:
    """Those backends start from the ONNX file, whose image had a second reader."""
    share = 0.98 if name != "coreml" else 0.95  # where products of activations stay in float
    for precision, logits in compile_untrained(student, EVERYTHING, name, share).items():
        least = {"fp32": 80, "fp16": 30, "int8": 5}[precision]
        assert decibels(logits, student.logits) > least, precision


REFUSED: dict[tuple[str, str], str] = {
    ("test_vit", "coreml"): "Core ML's converter refuses the network: .*upsample_bicubic2d",
    ("edgenext_xx_small", "coreml"): "asked for int8, but the runtime computes 2.4%",
    ("test_convnext", "tflite"): "litert-torch refuses the network: .*batch_matmul",
    ("efficientformerv2_s0", "export"): "shape .* is invalid for input of size",
    ("edgenext_xx_small", "tflite"): "litert-torch refuses the network: .*batch_matmul",
    ("test_vit", "tflite"): "litert-torch refuses the network: .*upsample_bicubic2d",
}
"""What a message says by network and backend, `export` where it is refused before."""
LEAST = {"fp32": 60, "fp16": 5, "int8": -10}
"""Decibels of the logits of untrained weights."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arch", FAMILIES)
def test_every_family_compiles_or_is_refused_in_one_sentence(arch: str, tmp_path: Path) -> None:
    network = Network(arch=arch, args=FAMILIES[arch])
    said: dict[str, str] = {}
    try:
        student = untrained(arch, network, Shape(32, 3, 10), 20, tmp_path)
    except PipelineError as error:
        said["export"] = error.what
    else:
        for name in NAMES:
            if backend(name).evaluator() is None:  # an optional extra
                continue
            try:
                logits = compile_untrained(student, EVERYTHING, name, 0.98)
            except PipelineError as error:
                said[name] = error.what
                continue
            noise = {p: decibels(its, student.logits) for p, its in logits.items()}
            assert all(noise[p] > LEAST[p] for p in noise), (name, noise)
    expected = {name: text for (its, name), text in REFUSED.items() if its == arch}
    assert said.keys() == expected.keys(), said
    for name, text in expected.items():
        assert re.search(text, said[name]) and "\n" not in said[name]
