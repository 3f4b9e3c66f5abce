"""What a profile of params.yaml reaches: teacher, students alone and distilled, int8 everywhere.

The teacher is trained once. Every seed has students, alone and distilled, and views of its own, for
which the teacher's logits are recorded. Each stage is the pipeline's own, in a folder below --work;
what is finished there is kept and a training that was cut off goes on, so that a run may take more
than one sitting. All figures are of the test split, which each network sees once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.shared import count
from pipeline.backends.base.artifact import Artifact
from pipeline.cli.params import Params, load_params
from pipeline.compile.records import METRICS_FILE, CompiledMetrics
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import write_whole
from pipeline.core.params import PARAMS_FILE
from pipeline.core.records import METRICS
from pipeline.data.records import MANIFEST, PACKED, Manifest
from pipeline.distill.records import TEACHER_LOGITS
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.networks.records import STUDENTS, TEACHERS
from pipeline.training.records import ModelMetrics

RESULTS = Path("results")
ALONE = [{"name": "cross_entropy", "weight": 1.0}]
ROOT = Path.cwd()


class Sitting:
    """The stages of one profile, in folders below `work`."""

    def __init__(self, profile: str, seeds: int, work: Path) -> None:
        """Read params.yaml and what was spent in earlier sittings."""
        self.tree: dict[str, Any] = yaml.safe_load(PARAMS_FILE.read_text()) | {"profile": profile}
        self.profile, self.work = profile, work
        self.seeds = [self.tree["seed"] + i for i in range(seeds)]
        self.teacher = work / "teacher"
        self._write(self.teacher, self.tree)
        self.params: Params = load_params(self.teacher / PARAMS_FILE)

    def go(self) -> dict[str, Any]:
        """Run what is left to do; the results."""
        for name in self.params.teachers.enabled:
            self._stage(self.teacher, TEACHERS / name, "train_teacher", "--teacher", name)
        for seed in self.seeds:
            taught, alone = self.work / str(seed), self.work / f"{seed}-alone"
            self._write(taught, self.tree | {"seed": seed}, teachers=True)
            self._stage(taught, TEACHER_LOGITS, "record_teacher")
            self._write(alone, _alone(self.tree, self.profile) | {"seed": seed})
            for name in self.params.students.enabled:
                for folder in (taught, alone):
                    self._stage(folder, STUDENTS / name, "distill", "--student", name)
                self._stage(taught, Path("models/onnx") / name, "export", "--student", name)
                for its in self.params.backends.enabled:
                    last = self.params.backends.settings(its).precisions[-1]
                    made = Artifact(name, its, last).folder
                    self._stage(taught, made, "compile", "--backend", its, "--student", name)
        return self._results()

    def _write(self, folder: Path, tree: dict[str, Any], *, teachers: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        links = {"data": ROOT / "data"}
        links |= {str(TEACHERS): self.teacher.resolve() / TEACHERS} if teachers else {}
        for name, target in links.items():
            link = folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(target)
        write_whole(folder / PARAMS_FILE, yaml.safe_dump(tree, sort_keys=False))

    def _stage(self, folder: Path, product: Path, name: str, *options: str) -> None:
        if (folder / product).exists():
            return
        print(f"{folder.name}: {name} {' '.join(options)}", flush=True)
        start = time.monotonic()
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", f"stages.{name}", *options]
        try:
            code = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
        finally:
            spent = self._spent() + time.monotonic() - start
            write_whole(self.work / "seconds", f"{spent:.0f}")
        if code:
            raise PipelineError(f"the stage {name} failed", where=str(folder))

    def _spent(self) -> float:
        file = self.work / "seconds"
        return float(file.read_text()) if file.exists() else 0.0

    def _results(self) -> dict[str, Any]:
        manifest = Manifest.read(PACKED / MANIFEST)
        teachers = {
            name: ModelMetrics.read(self.teacher / METRICS / "teachers" / f"{name}.json")
            for name in self.params.teachers.enabled
        }
        return {
            "profile": self.profile,
            "recipe": self.tree["profiles"][self.profile],
            "data": f"{manifest.source}, {manifest.size('test'):,} test images",
            "machine": read_fingerprint().model_dump(mode="json"),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "hours": round(self._spent() / 3600, 2),
            "seeds": self.seeds,
            "teachers": {
                name: {"top1": its.top1, "parameters": its.parameters}
                for name, its in teachers.items()
            },
            "students": {name: self._student(name) for name in self.params.students.enabled},
        }

    def _student(self, name: str) -> dict[str, Any]:
        def networks(suffix: str) -> list[ModelMetrics]:
            file = METRICS / "students" / f"{name}.json"
            return [ModelMetrics.read(self.work / f"{seed}{suffix}" / file) for seed in self.seeds]

        taught = networks("")
        row: dict[str, Any] = {
            "parameters": taught[0].parameters,
            "alone": [its.top1 for its in networks("-alone")],
            "distilled": [its.top1 for its in taught],
        }
        for its, precision in self.params.backends.pairs():
            files = [
                self.work / str(seed) / Artifact(name, its, precision).folder / METRICS_FILE
                for seed in self.seeds
            ]
            row[f"{its}/{precision}"] = [CompiledMetrics.read(file).top1 for file in files]
        return row


def _alone(tree: dict[str, Any], profile: str) -> dict[str, Any]:
    """params.yaml for students without a teacher, in everything else as the profile says."""
    own = tree["profiles"][profile]
    changed = own | {"distill": own["distill"] | {"losses": ALONE}}
    return tree | {
        "profiles": tree["profiles"] | {profile: changed},
        "teacher_logits": tree["teacher_logits"] | {"record": False},
    }


def page(result: dict[str, Any]) -> str:
    """results/PROFILE.md."""
    seeds = len(result["seeds"])
    lines = [
        f"# The profile `{result['profile']}`",
        "",
        f"{result['data']}; {result['machine']['cpu']}, {result['machine']['cores']} core(s), "
        f"{result['hours']:.1f} hours for everything below. Top-1 in percent, mean ± standard "
        f"deviation over {seeds} seeds of the students and their views; one teacher. Made by "
        f"`python -m benchmarks.profiles {result['profile']}`.",
        "",
        "| network | parameters | precision | top-1 |",
        "| --- | ---: | --- | ---: |",
    ]
    for name, its in result["teachers"].items():
        lines.append(
            f"| {name}, teacher | {its['parameters']:,} | float | {100 * its['top1']:.2f} |"
        )
    for name, row in result["students"].items():
        for kind, values in row.items():
            if kind == "parameters":
                continue
            told = f"float, {kind}" if kind in ("alone", "distilled") else kind
            lines.append(f"| {name} | {row['parameters']:,} | {told} | {_spread(values)} |")
    recipe = yaml.safe_dump(result["recipe"], default_flow_style=None, sort_keys=False, width=100)
    return "\n".join([*lines, "", "```yaml", recipe.rstrip(), "```", ""])


def _spread(values: list[float]) -> str:
    mean = 100 * statistics.mean(values)
    return (
        f"{mean:.2f} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"
    )


def main() -> None:
    options = argparse.ArgumentParser(description="what a profile reaches over seeds")
    options.add_argument("profile")
    options.add_argument("--seeds", type=count, default=3)
    options.add_argument("--work", type=Path, help="folder of its stages; .work/PROFILE by default")
    options.add_argument("--save", action="store_true", help=f"write {RESULTS}/PROFILE.*")
    arguments = options.parse_args()
    work = (arguments.work or Path(".work") / arguments.profile).resolve()
    result = Sitting(arguments.profile, arguments.seeds, work).go()
    if arguments.save:
        file = RESULTS / f"{arguments.profile}.json"
        write_whole(file, json.dumps(result, indent=2) + "\n")
        write_whole(file.with_suffix(".md"), page(result))
    print(page(result))


if __name__ == "__main__":
    run(main)
