"""Which of timm's families compile for which backend, float and int8, with untrained weights.

Each network goes through what `python -m pipeline check --export` does: export, every precision of
every enabled backend, the execution report, the exact input. Batch norms have the statistics of the
random images that also calibrate int8. A figure is 10 log10(signal / noise) of the logits in dB,
against torch: the signal is what differs between images, as that decides the answer. Untrained
networks differ little between images, so int8 shows less of it than with trained weights; above 0
dB the noise is smaller than the differences.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.shared import count
from pipeline.backends.base.registry import backend
from pipeline.cli.params import Params, load_params
from pipeline.compile.untrained import Shape, compile_untrained, untrained
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import write_whole
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.networks.params import Network

RESULTS = Path("benchmarks/results/networks.json")
FAMILIES: dict[str, dict[str, Any]] = {
    "test_byobnet": {}, "test_convnext": {}, "test_vit": {"img_size": 32}, "resnet10t": {},
    "resnet18": {}, "mobilenetv1_100": {}, "mobilenetv2_035": {}, "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small_050": {}, "tf_mobilenetv3_small_minimal_100": {}, "lcnet_050": {},
    "mnasnet_small": {}, "semnasnet_075": {}, "tinynet_e": {}, "hardcorenas_a": {},
    "efficientnet_lite0": {}, "ghostnet_050": {}, "regnety_002": {}, "repvgg_a0": {},
    "mobileone_s0": {}, "starnet_s1": {}, "rexnet_100": {}, "fastvit_t8": {}, "mobilevit_xxs": {},
    "edgenext_xx_small": {}, "efficientformerv2_s0": {},
}  # fmt: skip
"""Arguments by timm name; the small ones first."""


def decibels(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Signal to noise of logits [N, classes]: what differs between images, against the error."""
    signal = np.square(reference - reference.mean(axis=0)).sum()
    noise = np.square(logits - reference).sum()
    return round(float(10 * np.log10(signal / max(noise, 1e-30))), 1)


def sweep(params: Params, arch: str, shape: Shape) -> dict[str, Any]:
    """One row: by backend, decibels by precision or the refusal; `refused` where it ends before."""
    start = time.monotonic()
    row: dict[str, Any] = {"arch": arch, "args": FAMILIES[arch], "refused": None, "backends": {}}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            network = Network(arch=arch, args=FAMILIES[arch])
            student = untrained(arch, network, shape, params.export.opset, Path(scratch))
        except PipelineError as error:
            row["refused"] = str(error)
            return row
        for name in params.backends.enabled:
            try:
                least = params.quantize.min_int8_share
                logits = compile_untrained(student, params.backends, name, least)
            except PipelineError as error:
                row["backends"][name] = str(error)
                continue
            found = {precision: decibels(its, student.logits) for precision, its in logits.items()}
            row["backends"][name] = found
    return row | {"seconds": round(time.monotonic() - start)}


def show(result: dict[str, Any]) -> None:
    image, names = result["image"], result["backends"]
    print(f"\n{image['classes']} classes, {image['channels']} x {image['image_size']} px; dB")
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()))
    print(f"{'':<34}" + "".join(f"{backend(name).title:>20}" for name in names))
    refusals = []
    for row in result["rows"]:
        cells = []
        for name in names:
            cell = row["refused"] or row["backends"][name]
            cells.append("refused" if isinstance(cell, str) else " ".join(map(str, cell.values())))
        said = [cell for cell in (row["refused"], *row["backends"].values()) if type(cell) is str]
        refusals += [text.partition("\n")[0] for text in said]
        print(f"{row['arch']:<34}" + "".join(f"{cell:>20}" for cell in cells))
    print("\n" + "\n".join(refusals))


def main() -> None:
    options = argparse.ArgumentParser(description="timm's families on every enabled backend")
    options.add_argument("--arch", choices=FAMILIES, help="all of them by default")
    options.add_argument("--size", type=count, default=32, help="of the images, in pixels")
    options.add_argument("--channels", type=int, choices=(1, 3), default=3)
    options.add_argument("--classes", type=count, default=10)
    options.add_argument("--save", action="store_true", help=f"write {RESULTS}")
    arguments = options.parse_args()
    params = load_params()
    shape = Shape(arguments.size, arguments.channels, arguments.classes)
    names = params.backends.enabled
    packages = {package for name in names for package in backend(name).packages} | {"torch", "timm"}
    result: dict[str, Any] = {
        "machine": read_fingerprint().model_dump(mode="json", exclude={"runtimes"}),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in sorted(packages)},
        "image": vars(shape),
        "backends": list(names),
        "rows": [],
    }
    for arch in [arguments.arch] if arguments.arch else FAMILIES:
        print(arch, file=sys.stderr, flush=True)
        result["rows"].append(sweep(params, arch, shape))
        if arguments.save:  # after each, as all of them take long
            write_whole(RESULTS, json.dumps(result, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    run(main)
