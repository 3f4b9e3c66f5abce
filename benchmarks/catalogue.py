"""What students cost before anybody trains one: size and latency on each runtime, float and int8.

Every network is exported and compiled untrained, as `python -m pipeline check --export` does it,
and timed by the harness of the stage `benchmark`: one image at a time, one thread, all its
artifacts and the frozen reference interleaved in the same rounds. Weights hardly change these
figures. Branches that serve training alone are fused, and stems are what `stem_stride: auto` gives.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shared import count
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.job import opened_bytes
from pipeline.backends.base.registry import backend
from pipeline.backends.base.spec import versions
from pipeline.cli.params import Params, load_params
from pipeline.compile.untrained import Rehearsed, Shape, compile_one, untrained
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import write_whole
from pipeline.latency.benchmark import reference_target
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.latency.params import Benchmark
from pipeline.latency.rounds import measure
from pipeline.latency.workers import Target
from pipeline.networks.build import parameter_count
from pipeline.networks.params import Student
from pipeline.networks.weights import load_model

RESULTS = Path("benchmarks/results/catalogue.json")
PAGE = Path("docs/students.md")
SIZES = (64, 224)
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tflite": "LiteRT"}
PLAIN = {"args": {"global_pool": "fastavg"}}
STUDENTS: dict[str, dict[str, Any]] = {
    "lcnet_035": PLAIN, "lcnet_050": PLAIN, "lcnet_100": PLAIN,
    "tinynet_e": PLAIN, "tinynet_c": PLAIN,
    "mobilenetv3_small_050": PLAIN, "mobilenetv3_small_100": PLAIN,
    "mobilenetv3_large_100": PLAIN,
    "mobilenetv4_conv_small_035": PLAIN, "mobilenetv4_conv_small_050": PLAIN,
    "mobilenetv4_conv_small": PLAIN, "mobilenetv4_conv_medium": PLAIN,
    "mnasnet_small": PLAIN, "mnasnet_100": PLAIN, "mobilenetv1_100": PLAIN,
    "mobilenetv2_035": PLAIN, "mobilenetv2_050": PLAIN, "mobilenetv2_100": PLAIN,
    "efficientnet_lite0": PLAIN, "efficientnet_lite2": PLAIN,
    "ghostnet_050": {}, "ghostnet_100": {}, "mobileone_s0": {}, "repvgg_a0": {},
    "resnet10t": {}, "resnet18": {}, "fastvit_t8": {}, "edgenext_xx_small": {},
}  # fmt: skip
"""By timm name; timm has no ShuffleNet."""


@dataclass(frozen=True)
class Setting:
    """What one run of this script is asked for."""

    params: Params
    size: int
    channels: int
    classes: int
    benchmark: Benchmark


def row(arch: str, setting: Setting) -> dict[str, Any]:
    """The figures of one network; `refused` says why there are none."""
    shape = Shape(setting.size, setting.channels, setting.classes)
    student = Student(arch=arch, **STUDENTS[arch])
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "student").mkdir()
        try:
            exported = untrained(
                arch, student, shape, setting.params.export.opset, place / "student"
            )
        except PipelineError as error:
            return {"refused": error.what}
        network, _ = load_model(place / "student")
        cells = dict(_compiled(exported, setting, place))
        _time(cells, exported, setting, place)
    return {
        "parameters": parameter_count(network),
        "macs": sum(layer.macs for layer in exported.job.layers),
        "artifacts": {
            key: {k: v for k, v in its.items() if k != "target"} for key, its in cells.items()
        },
    }


def _compiled(
    exported: Rehearsed, setting: Setting, place: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each artifact, or why there is none."""
    params = setting.params
    for name in RUNTIMES:
        compiler = backend(name).compiler(params.backends.settings(name))
        for precision in ("fp32", "int8"):
            artifact = Artifact(exported.job.artifact.student, name, precision)
            folder = place / artifact.slug
            folder.mkdir()
            try:
                made, _ = compile_one(exported, name, compiler, precision, 0.0, folder)
            except PipelineError as error:
                yield artifact.key, {"refused": error.what}
                continue
            model = folder / made.model_file
            found: dict[str, Any] = {
                "kb": round(opened_bytes(model) / 1000, 1),
                "int8_mac_share": round(made.execution.int8_mac_share, 4),
                "target": Target(artifact.key, name, model, place / "images.npy"),
            }
            if made.execution.partitions is not None:
                found["partitions"] = made.execution.partitions.delegated
            yield artifact.key, found


def _time(
    cells: dict[str, dict[str, Any]], exported: Rehearsed, setting: Setting, place: Path
) -> None:
    """Add the latencies of all artifacts, timed in the same rounds."""
    np.save(place / "images.npy", exported.job.calibration)
    targets = [its["target"] for its in cells.values() if "target" in its]
    measured = measure([reference_target(place), *targets], setting.benchmark, seed=0)
    for key, its in cells.items():
        found = measured.rows.get(key)
        if found is None:
            continue
        if found.latency_ms is None:
            its["refused"] = found.reason
            continue
        its |= {
            "p50_ms": found.latency_ms.p50,
            "ratio_to_reference": found.ratio_to_reference,
            "ratio_interval": found.ratio_interval,
        }


def page(result: dict[str, Any]) -> str:
    """docs/students.md."""
    machine = result["machine"]
    sections = [_table(result, size) for size in result["sizes"] if result["rows"].get(str(size))]
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    intro = f"""# Students

What {len(STUDENTS)} networks of timm cost as students, before any training: parameters,
multiply-accumulates, and on each runtime the median latency of one image (p50, milliseconds, one
thread), int8's beside float's, and the size of the int8 file. Their weights are untrained, which
hardly changes these figures; accuracy is for [search](search.md) or `dvc repro` to find. Any other
network of timm can be a student, too.

Read the ratio first: int8 / float below 1 is what int8 buys on this machine. A note says where not
all multiply-accumulates are in int8, and where XNNPACK takes a graph of LiteRT in several parts:
what lies between them runs in slower kernels.

"""
    outro = f"""Measured on {machine["cpu"]} with {machine["cores"]} cores, in {result["rounds"]}
rounds in which all artifacts of a network took turns. {packages}.
Networks with branches that serve training alone are fused. `python -m benchmarks.catalogue --save`
repeats it on your machine and writes this page.
"""
    return intro + "".join(sections) + outro


def _table(result: dict[str, Any], size: int) -> str:
    """The table of one input size; networks from the fewest multiply-accumulates on."""
    rows = result["rows"][str(size)]
    fit = {arch: its for arch, its in rows.items() if "refused" not in its}
    titles = "".join(f" {title} p50 float, int8 | ratio | kB |" for title in RUNTIMES.values())
    lines = [
        f"## {size} x {size} pixels, {result['channels']} channels, {result['classes']} classes\n",
        f"| student | parameters, M | MACs, M |{titles} notes |",
        "| --- | ---: | ---: |" + " ---: | ---: | ---: |" * len(RUNTIMES) + " --- |",
    ]
    for arch in sorted(fit, key=lambda name: fit[name]["macs"]):
        its = fit[arch]
        cells = [f"{its['parameters'] / 1e6:.2f}", f"{its['macs'] / 1e6:.1f}"]
        notes: list[str] = []
        for name, title in RUNTIMES.items():
            found = {p: its["artifacts"].get(f"{arch}/{name}/{p}", {}) for p in ("fp32", "int8")}
            cells += _cells(found["fp32"], found["int8"])
            notes += [f"{title}: {note}" for note in _notes(found)]
        lines.append(f"| `{arch}` | " + " | ".join(cells) + f" | {'; '.join(notes)} |")
    refused = [f"- `{arch}`: {its['refused']}" for arch, its in rows.items() if "refused" in its]
    return "\n".join([*lines, *(["", *refused] if refused else []), "", ""])


def _cells(fp32: dict[str, Any], int8: dict[str, Any]) -> list[str]:
    """Latencies, their ratio and the size of the int8 file; a dash for what there is not."""
    times = [its.get("p50_ms") for its in (fp32, int8)]
    shown = ["-" if time is None else f"{time:.3g}" for time in times]
    both = None not in times
    return [
        ", ".join(shown),
        f"{times[1] / times[0]:.2f}" if both else "-",
        f"{int8['kb']:.0f}" if "kb" in int8 else "-",
    ]


def _notes(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What differs from the usual: refusals, layers in float, graphs in several parts."""
    for precision, its in found.items():
        if "refused" in its:
            yield f"{precision} refused: {its['refused']}".replace("|", "/").partition("\n")[0]
        elif precision == "int8" and its["int8_mac_share"] < 1:
            yield f"{its['int8_mac_share']:.0%} int8"
        if its.get("partitions", 1) != 1:
            yield f"{precision} in {its['partitions']} parts"


def main() -> None:
    options = argparse.ArgumentParser(description="what students cost, untrained, on each runtime")
    options.add_argument("--arch", choices=STUDENTS, nargs="+", help="all of them by default")
    options.add_argument(
        "--sizes", type=count, nargs="+", default=SIZES, help="of images, in pixels"
    )
    options.add_argument("--channels", type=int, choices=(1, 3), default=3)
    options.add_argument("--classes", type=count, default=10)
    options.add_argument("--rounds", type=count, default=15)
    options.add_argument(
        "--save", action="store_true", help=f"write {RESULTS} and {PAGE}, and go on from there"
    )
    asked = options.parse_args()
    params = load_params()
    settings = Benchmark(
        threads=1, rounds=asked.rounds, extra_rounds=asked.rounds // 2, min_runs=10,
        min_seconds=0.03, batch=0,
    )  # fmt: skip
    packages = [package for name in RUNTIMES for package in backend(name).packages]
    about: dict[str, Any] = {
        "machine": read_fingerprint().model_dump(mode="json", exclude={"runtimes"}),
        "versions": {"Python": platform.python_version()} | versions([*packages, "torch", "timm"]),
        "channels": asked.channels, "classes": asked.classes, "rounds": asked.rounds,
        "sizes": list(asked.sizes),
    }  # fmt: skip
    result = about | {"rows": {}}
    if asked.save and RESULTS.exists():
        earlier = json.loads(RESULTS.read_text())
        if {key: earlier[key] for key in about} == json.loads(json.dumps(about)):
            result = earlier
    for size in asked.sizes:
        rows = result["rows"].setdefault(str(size), {})
        setting = Setting(params, size, asked.channels, asked.classes, settings)
        for arch in asked.arch or STUDENTS:
            if arch in rows:
                continue
            print(f"{arch}, {size} px", file=sys.stderr, flush=True)
            rows[arch] = row(arch, setting)
            if asked.save:  # after each, as all of them take long
                write_whole(RESULTS, json.dumps(result, indent=1) + "\n")
                write_whole(PAGE, page(result))
    if not asked.save:
        print(page(result))


if __name__ == "__main__":
    run(main)
