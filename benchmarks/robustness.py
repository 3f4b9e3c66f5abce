"""What robust recipes gain and cost: a student trained plainly, by AugMix and by RSLAD.

All have the same network, teacher, recorded logits, epochs and recipe; seeds differ in initial
weights, order and dropout. The rows are means over seeds, of the float student:

- clean: top-1 on all test images.
- corrupted: top-1 on some test images under eight corruptions at three strengths; mCE, the mean
  over corruptions of the errors divided by those of the plain student of the same seed.
- PGD and AutoAttack: top-1 on some test images that were attacked within 8 of 255, each student by
  its own gradients. AutoAttack, which takes long, is on fewer images of the first seed, with PGD on
  the same ones beside it.
- p50 of one image through ONNX Runtime on one thread, of the first seed, in interleaved rounds.
- CPU minutes of the training.

Everything happens in the folder `--work`, where each student stays: a run that was stopped goes on
from there, training from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.shared import count
from pipeline.cli.params import Params, load_params
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import write_whole
from pipeline.data.recall import wilson
from pipeline.data.records import load_split
from pipeline.distill.records import TEACHER_LOGITS
from pipeline.distill.student import distill_student
from pipeline.export.evaluate import Runner
from pipeline.export.onnx import export_onnx
from pipeline.latency.benchmark import reference_target, write_test_images
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.latency.rounds import measure
from pipeline.latency.workers import Target
from pipeline.networks.build import tool_versions
from pipeline.networks.inference import evaluate, predict, set_up_torch
from pipeline.networks.params import Students
from pipeline.networks.pixels import PixelsToLogits
from pipeline.networks.records import CARD, STUDENTS, TEACHERS, ModelCard
from pipeline.networks.weights import load_pixels_to_logits
from pipeline.robustness.adversarial import Attacker
from pipeline.robustness.answers import Drawn, ask
from pipeline.robustness.autoattack import require_autoattack
from pipeline.robustness.measure import draw
from pipeline.robustness.params import Attack
from pipeline.robustness.records import AUTOATTACK, PGD
from pipeline.robustness.statistics import mean_corruption_error, resample

RESULTS = Path(__file__).parent / "results" / "robustness.json"
WORK = Path(".work/robustness")
STUDENT = "mnv4_small_050"
ARMS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "augmix": {"method": "augmix"},
    "rslad": {"method": "rslad", "steps": 2, "step_size": 5.0},
}
"""`distill.robust` of each; the plain one is what others are compared with."""
PLAIN = "plain"
STRENGTHS = (1, 3, 5)
ATTACK = Attack()


class Trials:
    """The students of all arms and seeds, and their figures."""

    def __init__(self, params: Params, asked: argparse.Namespace) -> None:
        """The working directory has data, teachers and teacher logits."""
        own = params.students.zoo[STUDENT]
        zoo = {
            arm: own.model_copy(update={"recipe": {"epochs": asked.epochs, "robust": robust}})
            for arm, robust in ARMS.items()
        }
        self.params = params.model_copy(update={"students": Students(enabled=tuple(zoo), zoo=zoo)})
        self.asked = asked
        images, labels = load_split("test")
        self.drawn = Drawn(draw(len(labels), asked.images, params.seed), images, labels)

    def train(self, arm: str, seed: int) -> None:
        """Train a student, unless it is there."""
        name, marker = f"{arm}-{seed}", Path(f"{arm}-{seed}.training")
        if self._trained(arm, name) and not marker.exists():
            return
        whole, start = not marker.exists(), time.process_time()
        write_whole(marker, "")
        if not self._trained(arm, name):
            distill_student(self.params, arm, run_as=name, seed=seed)
        minutes = (time.process_time() - start) / 60
        write_whole(_minutes(name), json.dumps(minutes if whole else None))
        marker.unlink()

    def _trained(self, arm: str, name: str) -> bool:
        """Whether the student is there, of these epochs and this recipe."""
        if not (STUDENTS / name / CARD).exists():
            return False
        distill, _ = self.params.own(arm)
        robust = None if distill.robust is None else distill.robust.model_dump()
        card = ModelCard.read_beside(STUDENTS / name)
        return (card.recipe.get("robust"), card.epochs) == (robust, self.asked.epochs)

    def of_seed(self, seed: int) -> dict[str, dict[str, Any]]:
        """The figures of all arms for one seed; those of a former run where they are kept."""
        file = Path(f"figures-{seed}.json")
        key = self._key(seed)
        if file.exists() and (found := json.loads(file.read_text()))["key"] == key:
            kept: dict[str, dict[str, Any]] = found["arms"]
            return kept
        models = {arm: self._model(arm, seed) for arm in ARMS}
        rows = self._corrupted(models)
        for arm, model in models.items():
            minutes = json.loads(_minutes(f"{arm}-{seed}").read_text())
            clean = evaluate(model, *load_split("test"))[1]
            rows[arm] |= {"clean": clean, "cpu_minutes": minutes, "pgd": self._attacked(model)}
            if seed == 1 and self.asked.autoattack:
                rows[arm] |= self._by_autoattack(model)
        write_whole(file, json.dumps({"key": key, "arms": rows}))
        return rows

    def _key(self, seed: int) -> list[str]:
        """What decides the figures: the students' weights, and how they are measured."""
        weights = [ModelCard.read_beside(STUDENTS / f"{arm}-{seed}").weights_digest for arm in ARMS]
        return [*weights, str(self.asked.images), str(self.asked.autoattack)]

    def _model(self, arm: str, seed: int) -> PixelsToLogits:
        model, _ = load_pixels_to_logits(STUDENTS / f"{arm}-{seed}")
        return model.eval().requires_grad_(False)

    def _corrupted(self, models: dict[str, PixelsToLogits]) -> dict[str, dict[str, Any]]:
        """Of all arms, on the same corrupted images."""
        seed = self.params.seed
        attacker = Attacker(models[PLAIN], ATTACK, seed)  # of no attack
        runners = {arm: _runner(model) for arm, model in models.items()}
        answers = ask(runners, self.drawn, STRENGTHS, (), attacker, seed)
        sums, plain = resample(answers.wrong), list(models).index(PLAIN)
        rows: dict[str, dict[str, Any]] = {}
        for k, arm in enumerate(models):
            its = mean_corruption_error(sums[:, k], sums[:, plain])
            rows[arm] = {
                "corrupted": float(answers.accuracy[k].mean()),
                "mce": None if its is None else [its.value, its.low, its.high],
            }
        return rows

    def _attacked(self, model: PixelsToLogits, name: str = PGD, images: int | None = None) -> float:
        """Top-1 on attacked images, the first ones that are drawn."""
        few = Drawn(self.drawn.numbers[:images], self.drawn.pixels, self.drawn.labels)
        attacker = Attacker(model, ATTACK, self.params.seed)
        answers = ask({"it": _runner(model)}, few, (), (name,), attacker, self.params.seed)
        return float(answers.attacked[name].mean())

    def _by_autoattack(self, model: PixelsToLogits) -> dict[str, Any]:
        images = min(self.asked.autoattack, len(self.drawn.numbers))
        return {
            "autoattack": self._attacked(model, AUTOATTACK, images),
            "pgd_beside": self._attacked(model, PGD, images),
            "autoattack_images": images,
        }

    def latencies(self) -> dict[str, float]:
        """p50 in milliseconds of each arm of the first seed, exported."""
        scratch = Path("onnx")
        scratch.mkdir(exist_ok=True)
        shown, targets = write_test_images(scratch), [reference_target(scratch)]
        for arm in ARMS:
            model, card = load_pixels_to_logits(STUDENTS / f"{arm}-1")
            export_onnx(model, card, self.params.export.opset, scratch / f"{arm}.onnx")
            targets.append(Target(arm, "onnxruntime", scratch / f"{arm}.onnx", shown))
        rows = measure(targets, self.params.benchmark, self.params.seed).rows
        failed = {arm: rows[arm].reason for arm in ARMS if rows[arm].latency_ms is None}
        if failed:
            raise PipelineError(f"ONNX Runtime failed: {failed}")
        return {arm: _p50(rows[arm].latency_ms) for arm in ARMS}


def _p50(latency: Any) -> float:
    return float(latency.p50)


def _minutes(name: str) -> Path:
    """CPU minutes of the training of one student; null where it was stopped in between."""
    return Path(f"{name}.minutes.json")


def _runner(model: PixelsToLogits) -> Runner:
    def answer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = predict(model, images).numpy()
        return logits

    return answer


def _whole(text: str) -> int:
    """A number of at least 0 from the command line."""
    return 0 if text == "0" else count(text)


def enter(work: Path) -> None:
    """Make `work` the working directory, with the project's data, teachers and teacher logits."""
    home = Path.cwd()
    for needed in (Path("data"), TEACHERS, TEACHER_LOGITS):
        if not needed.exists():
            fix = "run `dvc repro record_teacher`"
            raise PipelineError("it is not there", where=str(needed), fix=fix)
        (work / needed).parent.mkdir(parents=True, exist_ok=True)
        if not (work / needed).is_symlink():
            (work / needed).symlink_to(home / needed)
    (work / ".dvc").mkdir(exist_ok=True)  # DVCLive looks for a project
    write_whole(work / ".dvc/config", "[core]\n    no_scm = true\n")
    os.chdir(work)


def summary(seeds: dict[int, dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Means over seeds, with standard deviations of several; and what one seed has alone."""
    found: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        rows, row = [its[arm] for its in seeds.values()], {}
        for name in ("clean", "corrupted", "pgd", "cpu_minutes"):
            values = [its[name] for its in rows if its[name] is not None]
            row[name] = float(np.mean(values)) if values else None
            row[f"{name}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        errors = [its["mce"][0] for its in rows if its["mce"] is not None]
        row["mce"] = float(np.mean(errors)) if errors else None
        alone = ("autoattack", "pgd_beside", "autoattack_images", "p50_ms")
        found[arm] = row | {name: rows[0][name] for name in alone if name in rows[0]}
    return found


def show(result: dict[str, Any]) -> None:
    """The table of docs/robust-distillation.md."""
    print("| recipe | clean | corrupted | mCE | PGD-20 | AutoAttack (PGD-20) | p50 ms | CPU min |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for arm, row in result["summary"].items():
        cells = [f"{row[name]:.4f}" for name in ("clean", "corrupted")]
        cells.append("" if row["mce"] is None else f"{row['mce']:.3f}")
        cells.append(f"{row['pgd']:.4f}")
        both = [row.get(name) for name in ("autoattack", "pgd_beside")]
        cells.append("" if None in both else "{:.3f} ({:.3f})".format(*both))
        for name, form in (("p50_ms", ".3f"), ("cpu_minutes", ".1f")):
            cells.append("" if row.get(name) is None else format(row[name], form))
        print(f"| {arm} | {' | '.join(cells)} |")
    low, high = wilson(0.5 * result["images"], result["images"])
    print(
        f"\n{len(result['seeds'])} seed(s), {result['epochs']} epochs; corrupted and PGD on "
        f"{result['images']:,} test images, where 0.5 is known within {(high - low) / 2:.3f}"
    )


def main() -> None:
    options = argparse.ArgumentParser(description="robust recipes beside a plain one")
    options.add_argument("--seeds", type=count, default=3)
    options.add_argument("--epochs", type=count, default=3, help="of every student")
    options.add_argument("--images", type=count, default=1000, help="corrupted and attacked")
    options.add_argument("--autoattack", type=_whole, default=200, help="images; 0: none")
    options.add_argument("--no-latency", action="store_true", help="do not time the students")
    options.add_argument("--work", type=Path, default=WORK, help="folder of students and figures")
    options.add_argument("--save", action="store_true", help=f"write {RESULTS}, after each seed")
    arguments = options.parse_args()
    params = load_params()
    versions = tool_versions() | (require_autoattack() if arguments.autoattack else {})
    enter(arguments.work)
    trials = Trials(params, arguments)
    set_up_torch(params.seed)
    result: dict[str, Any] = {
        "machine": read_fingerprint().model_dump(include={"cpu", "cores"}),
        "threads": torch.get_num_threads(), "versions": versions, "student": STUDENT,
        "arms": ARMS, "epochs": arguments.epochs, "images": len(trials.drawn.numbers),
        "strengths": STRENGTHS, "attack": ATTACK.model_dump(), "seeds": {},
    }  # fmt: skip
    for seed in range(1, arguments.seeds + 1):
        for arm in ARMS:
            trials.train(arm, seed)
        rows = trials.of_seed(seed)
        if seed == 1 and not arguments.no_latency:
            for arm, p50 in trials.latencies().items():
                rows[arm]["p50_ms"] = p50
        result["seeds"][seed] = rows
        result["summary"] = summary(result["seeds"])
        if arguments.save:
            write_whole(RESULTS, json.dumps(result, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    run(main)
