"""What pruning is worth: a student before and after, beside narrower ones of the same seconds.

For each seed, with the teacher of models/teachers and logits that it records for the seed's views:

- `full`: the student as params.yaml has it.
- `pruned`: the same, pruned to a share of its MACs by the stage `prune`.
- `narrow`: timm's next narrower network, from random weights.
- `shape`: a network of the very shapes that pruning found, from random weights.

The last two learn for as many epochs as fit into the CPU seconds that `full` and its pruning took
together. All are distilled with the same losses, views and recorded logits, and each ends under
int8's rounding. The epoch is chosen on val; test is evaluated once per artifact. Every p50 of a
seed is measured in the same interleaved rounds. Each stage is the pipeline's own, in a folder below
--work; what is finished is kept, so that a run may take more than one sitting.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.shared import count
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.params import ArtifactParams
from pipeline.backends.base.records import ArtifactRecord
from pipeline.compile.records import METRICS_FILE, CompiledMetrics
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import temporary_folder, write_whole
from pipeline.core.params import PARAMS_FILE, load
from pipeline.data.records import PACKED, Manifest
from pipeline.distill.params import DistillParams
from pipeline.distill.records import TEACHER_LOGITS
from pipeline.distill.student import lessons
from pipeline.latency.benchmark import reference_target, write_test_images
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.latency.params import Benchmark
from pipeline.latency.rounds import measure, ratio
from pipeline.latency.workers import Target
from pipeline.networks.branches import has_branches
from pipeline.networks.build import build_network
from pipeline.networks.inference import set_up_torch
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.records import PRUNED, STUDENTS, TEACHERS, ModelCard
from pipeline.networks.shipped import SUFFIX
from pipeline.prune.records import PRUNING, Pruning
from pipeline.training.auto import facts, plan_int8_phase, plan_recipe
from pipeline.training.devices import launch
from pipeline.training.task import Task, train_and_write

RESULTS = Path(__file__).parent / "results" / "pruning.json"
FULL, CUT, NARROW, SHAPE = "full", "pruned", "narrow", "shape"
BACKENDS = {
    name: {"precisions": ["fp32", "int8"]} for name in ("onnxruntime", "openvino", "tflite")
}
SECONDS = "seconds.json"
ROOT = Path.cwd()


class Seed:
    """The networks of one seed, in a folder of its own."""

    def __init__(self, tree: dict[str, Any], asked: argparse.Namespace, seed: int) -> None:
        self.seed, self.work = seed, asked.work.resolve() / str(seed)
        student = tree["students"]["zoo"][asked.student]
        student = student | ({"recipe": {"epochs": asked.epochs}} if asked.epochs else {})
        narrow = student | {"arch": asked.narrow}
        views = tree["views"] | ({"epochs": asked.epochs} if asked.epochs else {})
        learning = {"epochs": asked.epochs} if asked.epochs else {}
        self.tree = tree | {
            "seed": seed,
            "views": views,
            "students": {
                "enabled": [FULL, CUT, NARROW, SHAPE],
                "zoo": {FULL: student, CUT: student, NARROW: narrow, SHAPE: student},
            },
            "backends": {"enabled": list(BACKENDS), **BACKENDS},
            "prune": tree["prune"]
            | {"enabled": [CUT, SHAPE], "to": {"macs": asked.macs}}
            | learning,
        }

    def go(self) -> dict[str, Any]:
        """Make what is missing; the figures."""
        self._furnish()
        self._write_params({})
        self._stage(TEACHER_LOGITS, "record_teacher")
        self._stage(STUDENTS / FULL, "distill", "--student", FULL)
        twin = self.work / STUDENTS / CUT
        if not twin.exists():  # the same network, recipe and seed: the same bits
            shutil.copytree(self.work / STUDENTS / FULL, twin)
        self._stage(PRUNED / CUT, "prune", "--student", CUT)
        spent = self._seconds()
        budget = spent[f"distill {FULL}"] + spent[f"prune {CUT}"]
        epochs = {}
        for name in (NARROW, SHAPE):
            epochs[name] = self._epochs(name, budget)
            self._write_params({name: epochs[name]})
            self._learn(name, f"distill {name}")
        self._write_params(epochs)
        for name in (FULL, CUT, NARROW, SHAPE):
            self._stage(Path("models/onnx") / name, "export", "--student", name)
            for its in BACKENDS:
                made = Artifact(name, its, "int8").folder
                self._stage(made, "compile", "--backend", its, "--student", name)
        return self._figures(epochs)

    def _furnish(self) -> None:
        for name, target in (("data", ROOT / "data"), (str(TEACHERS), ROOT / TEACHERS)):
            link = self.work / name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(target)

    def _write_params(self, epochs: dict[str, int]) -> None:
        zoo = {
            name: its | ({"recipe": {"epochs": epochs[name]}} if name in epochs else {})
            for name, its in self.tree["students"]["zoo"].items()
        }
        tree = self.tree | {"students": self.tree["students"] | {"zoo": zoo}}
        write_whole(self.work / PARAMS_FILE, yaml.safe_dump(tree, sort_keys=False))

    def _stage(self, product: Path, name: str, *options: str) -> None:
        self._run(product, " ".join((name, *options[1::2])), "-m", f"stages.{name}", *options)

    def _run(self, product: Path, label: str, *command: str) -> None:
        """Run Python in the folder unless it has the product; note CPU seconds of all sittings."""
        if (self.work / product).exists():
            return
        print(f"seed {self.seed}: {label}", flush=True)
        start = _cpu_seconds()
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        try:
            code = subprocess.run(
                [sys.executable, *command], cwd=self.work, env=environment, check=False
            ).returncode
        finally:
            spent = self._seconds()
            spent[label] = spent.get(label, 0.0) + _cpu_seconds() - start
            write_whole(self.work / SECONDS, json.dumps(spent, indent=2))
        if code:
            raise PipelineError(f"`{label}` failed", where=str(self.work))

    def _seconds(self) -> dict[str, float]:
        file = self.work / SECONDS
        return json.loads(file.read_text()) if file.exists() else {}

    def _epochs(self, name: str, budget: float) -> int:
        """As many as fit into `budget` CPU seconds, by what the first two take alone."""
        label = f"two epochs of {name}, timed"
        if label not in self._seconds():
            self._write_params({name: 2})
            self._learn(name, label)
            shutil.rmtree(self.work / self._product(name))
        return max(2, round(2 * budget / self._seconds()[label]))

    def _learn(self, name: str, label: str) -> None:
        script = ("-m", "stages.distill", "--student", name)
        if name == SHAPE:
            script = ("-m", "benchmarks.pruning", "--shape-here")
        self._run(self._product(name), label, *script)

    def _product(self, name: str) -> Path:
        return (PRUNED if name in (CUT, SHAPE) else STUDENTS) / name

    def _figures(self, epochs: dict[str, int]) -> dict[str, Any]:
        home = Path.cwd()
        os.chdir(self.work)
        try:
            found = {name: self._network(name) for name in (FULL, CUT, NARROW, SHAPE)}
            self._time(found)
            its = Pruning.read(PRUNED / CUT / PRUNING)
        finally:
            os.chdir(home)
        change = {"lost": its.lost, "won": its.won, "images": its.images}
        return {
            "networks": found, "seconds": self._seconds(), "epochs": epochs,
            "float_full_to_pruned": change, "machine": read_fingerprint().cpu,
        }  # fmt: skip

    def _network(self, name: str) -> dict[str, Any]:
        card = ModelCard.read_beside(self._product(name))
        row: dict[str, Any] = {"parameters": card.parameters, "float_val": card.val_top1}
        for its, settings in BACKENDS.items():
            for precision in settings["precisions"]:
                artifact = Artifact(name, its, precision)
                metrics = CompiledMetrics.read(artifact.folder / METRICS_FILE)
                kept = [one.val_top1 for one in metrics.ladder if one.kept]
                row[f"{its}/{precision}"] = {
                    "val": kept[0] if kept else card.val_top1,
                    "test": metrics.top1,
                    "kb": metrics.size_bytes / 1000,
                    "macs": ArtifactRecord.read(artifact.folder / "artifact.json").execution.macs,
                }
        return row

    def _time(self, found: dict[str, Any]) -> None:
        """Add p50 in ms, and its ratio to that of `full` in the same rounds."""
        artifacts = load(ArtifactParams).backends.artifacts(tuple(found))
        with temporary_folder() as scratch:
            images = write_test_images(scratch)
            targets = [reference_target(scratch)]
            for one in artifacts:
                model = one.folder / ArtifactRecord.read_whole(one.folder).model_file
                targets.append(Target(one.key, one.backend, model, images))
            settings = Benchmark(
                threads=1, rounds=20, extra_rounds=10, min_runs=10, min_seconds=0.05, batch=0
            )
            measured = measure(targets, settings, self.seed)
        for one in artifacts:
            row = found[one.student][f"{one.backend}/{one.precision}"]
            latency = measured.rows[one.key].latency_ms
            whole = Artifact(FULL, one.backend, one.precision).key
            if latency is None or whole not in measured.raw:
                row["p50_ms"] = None
                continue
            share, limits = ratio(measured.raw[one.key], measured.raw[whole])
            row |= {"p50_ms": latency.p50, "p50_share": share, "p50_share_limits": limits}


def _cpu_seconds() -> float:
    """Of all processes that this one has waited for: what else the machine does hardly counts."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def train_shape() -> None:
    """In the folder of a seed: a network of the pruned one's shapes, from random weights."""
    params = load(DistillParams)
    network, (distill, shown) = params.students.zoo[SHAPE], params.own(SHAPE)
    fabric = launch(distill.training)
    manifest = Manifest.read(PACKED / "manifest.json")
    shapes = ModelCard.read_beside(PRUNED / CUT).shapes
    set_up_torch(params.seed)
    build = partial(
        build_network, network, classes=len(manifest.classes), channels=manifest.channels,
        image_size=manifest.image_size,
    )  # fmt: skip
    wide, built = build(), build(shapes=shapes)
    parts = built.state_dict()
    for name, tensor in wide.state_dict().items():  # timm's own random weights, of fewer channels
        parts[name] = tensor[tuple(map(slice, parts[name].shape))]
    built.load_state_dict(parts)
    about = facts(manifest, manifest.image_size, shown)
    recipe = plan_recipe(distill.training, about, "students")
    model = PixelsToLogits(built, student_normalisation(manifest.channels))
    taught = lessons(
        params.model_copy(update={"distill": distill}), network, recipe, model, fabric, manifest,
        TEACHER_LOGITS,
    )  # fmt: skip
    assert isinstance(shown.epochs, int)
    task = Task(
        name=SHAPE, kind=STUDENTS.name, folder=PRUNED / SHAPE, network=network,
        input_size=manifest.image_size, training=recipe, epochs=shown.epochs, seed=params.seed,
        settings=taught.settings,
        int8_phase=plan_int8_phase(distill.int8_phase, about, has_branches(built)),
        shapes=shapes, suffix=SUFFIX,
    )  # fmt: skip
    train_and_write(fabric, task, manifest, taught.objective, taught.views, taught.recorded)


def table(seeds: dict[int, dict[str, Any]]) -> str:
    """Top-1 in percent, and the share of `full`'s p50: means ± standard deviations over seeds."""
    columns = (
        "network",
        "artifact",
        "MACs",
        "kB",
        "val",
        "test",
        "p50 ms",
        "share of p50",
        "seconds",
    )
    lines = [f"| {' | '.join(columns)} |", "| --- | --- |" + " ---: |" * (len(columns) - 2)]
    labels = {CUT: (f"distill {FULL}", f"prune {CUT}")}
    for name in (FULL, CUT, NARROW, SHAPE):
        for key in (f"{its}/{precision}" for its in BACKENDS for precision in ("fp32", "int8")):
            rows = [its["networks"][name][key] for its in seeds.values()]
            spent = [
                sum(its["seconds"][one] for one in labels.get(name, (f"distill {name}",)))
                for its in seeds.values()
            ]
            cells = [
                name, key, f"{rows[0]['macs']:,}", f"{rows[0]['kb']:,.0f}",
                _spread([100 * row["val"] for row in rows]),
                _spread([100 * row["test"] for row in rows]),
                _spread([row["p50_ms"] or float("nan") for row in rows], 4),
                _spread([row.get("p50_share", float("nan")) for row in rows], 3),
                f"{statistics.mean(spent):.0f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(seeds: dict[int, dict[str, Any]]) -> list[str]:
    """Whether pruning won, in sentences, by the mean of int8's test top-1 over runtimes."""

    def mean(name: str) -> float:
        found = [
            its["networks"][name][f"{backend}/int8"]["test"]
            for its in seeds.values()
            for backend in BACKENDS
        ]
        return 100 * statistics.mean(found)

    lines = [f"int8, full to pruned: {mean(CUT) - mean(FULL):+.2f} points of test top-1"]
    for name in (NARROW, SHAPE):
        gain = mean(CUT) - mean(name)
        won = "wins" if gain > 0 else "does not win"
        lines.append(f"pruning {won} over `{name}` at equal seconds: {gain:+.2f} points in int8")
    for backend in BACKENDS:
        shares = [
            its["networks"][CUT][f"{backend}/int8"].get("p50_share") for its in seeds.values()
        ]
        if None in shares:
            lines.append(f"{backend} int8: p50 not measured here")
            continue
        lower = "lower" if max(shares) < 1 else "NOT lower in every seed"
        lines.append(f"{backend} int8: p50 {lower}, {statistics.mean(shares):.3f} of the unpruned")
    return lines


def _spread(values: list[float], digits: int = 2) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def main() -> None:
    options = argparse.ArgumentParser(description="a student pruned, beside narrower ones")
    options.add_argument("--seeds", type=count, default=3)
    options.add_argument("--macs", type=float, default=0.6, help="share that is left")
    options.add_argument("--student", default="mnv4_small_050", help="of students.zoo")
    options.add_argument("--narrow", default="mobilenetv4_conv_small_035", help="timm's name")
    options.add_argument("--epochs", type=count, help="of `full` and of pruning; auto by default")
    options.add_argument("--work", type=Path, default=Path(".work/pruning"))
    options.add_argument("--save", action="store_true", help=f"write {RESULTS}, after each seed")
    options.add_argument("--shape-here", action="store_true", help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.shape_here:
        train_shape()
        return
    tree: dict[str, Any] = yaml.safe_load(PARAMS_FILE.read_text())
    result: dict[str, Any] = {"macs": asked.macs, "student": asked.student, "narrow": asked.narrow}
    result |= {"machine": read_fingerprint().model_dump(mode="json"), "seeds": {}}
    for seed in range(1, asked.seeds + 1):
        result["seeds"][seed] = Seed(tree, asked, seed).go()
        result |= {"verdict": verdict(result["seeds"])}
        if asked.save:
            write_whole(RESULTS, json.dumps(result, indent=2) + "\n")
    print(table(result["seeds"]))
    print("\n".join(result["verdict"]))


if __name__ == "__main__":
    run(main)
