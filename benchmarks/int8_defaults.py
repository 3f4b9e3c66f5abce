"""Our int8 artifacts for LiteRT and OpenVINO beside the same students by the tools' defaults.

The defaults follow the tools' own guides: the trained network, without its normalisation inside,
is converted by `openvino.convert_model`, `nncf.quantize` and `compile_model`, or by
`litert_torch.convert` and ai-edge-quantizer's recipe `static_wi8_ai8`. Both get the same
calibration images, normalised. Each image is then normalised with NumPy, in the layout, type and
scale of the model's input, so that both sides are timed from raw pixels to logits.

One thread, one image at a time, in one process, in interleaved rounds. A speed is the default's p50
divided by ours in the same round: above 1, ours is faster.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.shared import count
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.base.registry import backend
from pipeline.cli.params import load_params
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import write_whole
from pipeline.data.answers import top1
from pipeline.data.records import MANIFEST, PACKED, Manifest, load_calibration, load_split
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.latency.harness import Harness, balanced_order
from pipeline.networks import grid
from pipeline.networks.records import STUDENTS
from pipeline.networks.weights import load_model

RESULTS = Path("benchmarks/results/int8_defaults.json")
LEAST = 0.97
IMAGES = 64
PACKAGES = ("openvino", "nncf", "ai-edge-litert", "ai-edge-quantizer", "litert-torch", "numpy")

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""From raw pixels uint8 [1, H, W, C] to logits float32 [1, classes]."""


def normalised(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The input that the network was trained on, float32 [N, C, H, W]."""
    return np.ascontiguousarray(grid.normalise(images).transpose(0, 3, 1, 2))


def openvino_default(student: str, calibration: NDArray[np.uint8]) -> Run:
    """The student quantized by NNCF with its defaults."""
    import nncf
    import openvino

    network, card = load_model(STUDENTS / student)
    shape = [1, card.channels, card.image_size, card.image_size]
    model = openvino.convert_model(network, input=shape, example_input=torch.zeros(shape))
    samples = normalised(calibration)
    dataset = nncf.Dataset([samples[i : i + 1] for i in range(len(samples))])
    quantized = nncf.quantize(model, dataset)
    compiled = openvino.compile_model(quantized, "CPU", {"INFERENCE_NUM_THREADS": 1})

    def run(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = compiled(normalised(image))[0]
        return logits

    return run


def tflite_default(student: str, calibration: NDArray[np.uint8]) -> Run:
    """The student quantized by ai-edge-quantizer with its static recipe."""
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    network, card = load_model(STUDENTS / student)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.contiguous()  # litert-torch loses weights in channels-last
    sample = torch.zeros(1, card.channels, card.image_size, card.image_size)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "float.tflite")
        litert_torch.convert(network.eval(), (sample,)).export(str(file))
        (name,) = Interpreter(str(file)).get_signature_list()["serving_default"]["inputs"]
        tool = quantizer.Quantizer(str(file), recipe.static_wi8_ai8())
        samples = normalised(calibration)
        data = [{name: samples[i : i + 1]} for i in range(len(samples))]
        result = tool.quantize(tool.calibrate({"serving_default": data}))
        content = bytes(result.quantized_model)
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    given, taken = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def run(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        interpreter.set_tensor(given["index"], _as_asked(normalised(image), given))
        interpreter.invoke()
        logits: NDArray[np.float32] = interpreter.get_tensor(taken["index"])
        scale, zero_point = taken["quantization"]
        if scale:
            logits = (logits.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
        return logits

    return run


def _as_asked(image: NDArray[np.float32], details: dict[str, Any]) -> NDArray[Any]:
    """The image as the model takes it, quantized where the input is int8."""
    scale, zero_point = details["quantization"]
    if not scale:
        return image
    quantized: NDArray[Any] = np.clip(np.rint(image / scale) + zero_point, -128, 127)
    return quantized.astype(details["dtype"])


DEFAULTS = {"openvino": openvino_default, "tflite": tflite_default}


def ours(artifact: Artifact) -> Run:
    """Our artifact through its runtime, on one thread."""
    record = ArtifactRecord.read_whole(artifact.folder)
    return backend(artifact.backend).load(artifact.folder / record.model_file, threads=1, batch=1)


def compare(artifact: Artifact, rounds: int, seed: int) -> dict[str, Any]:
    """Of both: p50 in milliseconds of every round, and top-1 on the test split."""
    images, labels = load_split("test")
    calibration = load_calibration(Manifest.read(PACKED / MANIFEST))
    default = DEFAULTS[artifact.backend](artifact.student, calibration)
    runs = {"ours": ours(artifact), "default": default}
    spread = np.linspace(0, len(images) - 1, min(IMAGES, len(images))).astype(int)
    harnesses = {key: Harness(run, images[spread]) for key, run in runs.items()}
    found: dict[str, Any] = {"student": artifact.student, "backend": artifact.backend}
    for key, answer in runs.items():
        harnesses[key].round(min_runs=50, min_seconds=0.5)  # warms caches and clocks
        logits = np.concatenate([answer(np.array(images[i : i + 1])) for i in range(len(images))])
        found[key] = {"top1": top1(logits, labels), "p50_ms": []}
    for order in balanced_order(list(runs), rounds, seed):
        for key in order:
            times = harnesses[key].round(min_runs=50, min_seconds=0.2)
            found[key]["p50_ms"].append(float(np.median(times)) / 1e6)
    speeds = np.array(found["default"]["p50_ms"]) / np.array(found["ours"]["p50_ms"])
    found["speed"] = {
        "median": float(np.median(speeds)), "least": float(speeds.min()),
        "most": float(speeds.max()),
    }  # fmt: skip
    return found


def show(result: dict[str, Any]) -> None:
    machine = result["machine"]
    print(f"{machine['cpu']}, {machine['cores']} cores; one thread, {result['rounds']} rounds")
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()) + "\n")
    print(f"{'':<28}{'p50 ms':>18}{'top-1':>18}  speed (least to most)")
    print(f"{'':<28}{'ours':>9}{'default':>9}{'ours':>9}{'default':>9}")
    for row in result["rows"]:
        p50s = (np.median(row[key]["p50_ms"]) for key in ("ours", "default"))
        tops = (row[key]["top1"] for key in ("ours", "default"))
        speed = "{median:.3f} ({least:.3f} to {most:.3f})".format(**row["speed"])
        print(
            f"{row['student'] + ' ' + row['backend']:<28}"
            + "".join(f"{value:>9.3f}" for value in p50s)
            + "".join(f"{value:>9.4f}" for value in tops)
            + f"  {speed}"
        )
    print(f"\nA median speed of at least {LEAST} is wanted.")


def main() -> None:
    options = argparse.ArgumentParser(description="our int8 beside the tools' own defaults")
    options.add_argument("--rounds", type=count, default=20, help="even: the order is balanced")
    options.add_argument("--student", help="in params.yaml; all enabled ones by default")
    options.add_argument("--save", action="store_true", help=f"write {RESULTS}")
    arguments = options.parse_args()
    params = load_params()
    students = (arguments.student,) if arguments.student else params.students.enabled
    artifacts = [Artifact(student, name, "int8") for student in students for name in DEFAULTS]
    for artifact in artifacts:
        if not artifact.folder.exists():
            raise PipelineError(
                "it has not been compiled", where=str(artifact.folder), fix="run `dvc repro`"
            )
    rows = []
    for artifact in artifacts:
        print(artifact, file=sys.stderr)
        rows.append(compare(artifact, arguments.rounds, params.seed))
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    result = {
        "machine": read_fingerprint().model_dump(mode="json", exclude={"runtimes"}),
        "versions": {"python": platform.python_version()} | versions,
        "rounds": arguments.rounds,
        "rows": rows,
    }
    show(result)
    if arguments.save:
        write_whole(RESULTS, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    run(main)
