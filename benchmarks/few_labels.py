"""What images without labels are worth: 100 labels per class of Fashion-MNIST, the rest without.

A student learns from the labels alone, and from a teacher that learnt from the labels and, by
FixMatch, from the other images; this one sees all images. Both have the same number of steps,
batches and recipe, which are what `auto` finds. Labels, splits and initial weights differ between
seeds. The epoch of every network is chosen on val, and test is evaluated with that one.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from benchmarks.shared import AUGMENT, TERMS, count
from pipeline.cli.params import Params, load_params
from pipeline.core.errors import run
from pipeline.core.files import write_whole
from pipeline.data.params import Views as ViewParams
from pipeline.data.prepare import prepare
from pipeline.data.records import Manifest, load_split
from pipeline.data.sources import fetch
from pipeline.data.unlabelled import Joined, Shown, load_shown
from pipeline.data.views import Views, seed_of
from pipeline.distill.objective import Distillation
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.networks.build import build_network
from pipeline.networks.inference import evaluate, set_up_torch
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.records import Normalisation
from pipeline.training.auto import Facts, Kind, plan_recipe, plan_views
from pipeline.training.few_labels import Consistent, PairedViews
from pipeline.training.loop import fit
from pipeline.training.objective import Objective, Run
from pipeline.training.params import Training
from pipeline.training.teacher import Supervised

RESULTS = Path(__file__).parent / "results" / "few_labels.json"
LABELS = 100
STUDENT, TEACHER = "mnv3_small_050", "resnet"
ALONE, ALL, TAUGHT = "student: labels alone", "student: all images", "teacher: all images"


class Trial:
    """The networks of one seed."""

    def __init__(
        self, params: Params, fabric: Fabric, seed: int, asked: argparse.Namespace
    ) -> None:
        """Prepare the data; the seed decides which images keep their labels."""
        self.params, self.fabric, self.seed, self.epochs = params, fabric, seed, asked.epochs
        data = params.data.model_copy(update={"labels": LABELS, "limit": asked.limit})
        self.manifest: Manifest = prepare(data, seed)

    def go(self) -> dict[str, dict[str, float]]:
        """Top-1 of all networks."""
        settings = self.params.teachers.zoo[TEACHER]
        shown = load_shown(self.manifest, settings.views)
        views = self.views(PairedViews, shown)
        statistics = Normalisation(mean=self.manifest.mean, std=self.manifest.std)
        teacher = self.model(settings.network, statistics)
        training, share = settings.training, views.labelled_share
        smoothing = training.label_smoothing
        learning = Consistent(teacher, smoothing, settings.consistency, share)
        found = {TAUGHT: self.train(TAUGHT, learning, views, settings.views, training)}
        shown = load_shown(self.manifest, self.params.views)
        views, training = self.views(Views, shown), self.params.distill.training
        enabled = self.params.teachers.model_copy(update={"enabled": (TEACHER,), "weights": {}})
        first = torch.from_numpy(shown.known[0][:1].copy())
        distilled = Distillation(
            self.student(), {TEACHER: teacher}, TERMS, {}, enabled, first,
            labelled_share=views.labelled_share,
        )  # fmt: skip
        found[ALL] = self.train(ALL, distilled, views, self.params.views, training)
        images, labels = shown.known
        times = round(len(shown.labels) / len(labels))
        repeated = Joined(images, images[:0], (times, 0)), np.tile(labels, times)
        alone = self.views(Views, Shown(*repeated, shown.known))
        as_many = self.params.views.model_copy(update={"epochs": found[ALL]["epochs"]})
        found[ALONE] = self.train(ALONE, Supervised(self.student(), 0.0), alone, as_many, training)
        return found

    def views(self, kind: type[Views], shown: Shown) -> Views:
        """Mirrored and shifted images."""
        return kind(
            shown.images, shown.labels, AUGMENT, classes=len(self.manifest.classes),
            seed=seed_of(kind.__name__, self.seed), size=self.manifest.image_size,
            known=shown.known,
        )  # fmt: skip

    def model(self, network: Network, normalisation: Normalisation) -> PixelsToLogits:
        """An untrained network, the same one in every call."""
        set_up_torch(self.seed)
        built = build_network(
            network,
            classes=len(self.manifest.classes),
            channels=self.manifest.channels,
            image_size=self.manifest.image_size,
        )
        return PixelsToLogits(built.to(memory_format=torch.channels_last), normalisation)  # type: ignore[call-overload]

    def student(self) -> PixelsToLogits:
        """The untrained student."""
        channels = self.manifest.channels
        return self.model(self.params.students.zoo[STUDENT], student_normalisation(channels))

    def train(
        self, name: str, objective: Objective, views: Views, shown: ViewParams, training: Training
    ) -> dict[str, float]:
        """Fit as the pipeline would, and top-1 on val and test."""
        size, known = self.manifest.image_size, int((views.labels >= 0).sum())
        about = Facts(len(views), size, pretrained=False, unlabelled=len(views) - known)
        kind: Kind = "teachers" if name == TAUGHT else "students"
        recipe = plan_recipe(training, about, kind)
        epochs = self.epochs or plan_views(shown, about, kind).epochs
        key = f"{name} {self.seed}".replace(" ", "-").replace(":", "")
        val = load_split("val")
        run = Run(name, key, self.seed, recipe, epochs, 1e9, curves=False)
        fit(self.fabric, objective, views, val, run)
        model = objective.model.eval().requires_grad_(False)
        return {
            "val": evaluate(model, *val)[1],
            "test": evaluate(model, *load_split("test"))[1],
            "epochs": epochs,
            "steps": epochs * (len(views) // recipe.batch_size),
            "batch": recipe.batch_size,
        }


def summary(seeds: dict[int, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Mean over seeds and, of several, their standard deviation."""
    found = {}
    for name in next(iter(seeds.values())):
        row = {}
        for split in ("val", "test"):
            values = np.array([its[name][split] for its in seeds.values()])
            row |= {f"{split}_mean": float(values.mean())}
            row |= {f"{split}_sd": float(values.std(ddof=1))} if len(values) > 1 else {}
        found[name] = row
    return found


def main() -> None:
    options = argparse.ArgumentParser(description="student with and without unlabelled images")
    options.add_argument("--seeds", type=count, default=3)
    options.add_argument("--limit", type=count, help="keep so many images per split")
    options.add_argument("--epochs", type=count, help="of all networks; auto by default")
    options.add_argument("--save", action="store_true", help=f"write {RESULTS}, after each seed")
    arguments = options.parse_args()
    params = load_params()
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    result: dict[str, Any] = {
        "machine": read_fingerprint().model_dump(include={"cpu", "cores"}),
        "threads": torch.get_num_threads(), "labels_per_class": LABELS, "limit": arguments.limit,
        "student": STUDENT, "teacher": TEACHER, "seeds": {},
    }  # fmt: skip
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            fetch(params.data)
            for seed in range(1, arguments.seeds + 1):
                result["seeds"][seed] = Trial(params, fabric, seed, arguments).go()
                result["summary"] = summary(result["seeds"])
                if arguments.save:
                    write_whole(home / RESULTS, json.dumps(result, indent=2) + "\n")
        finally:
            os.chdir(home)
    for name, its in result["summary"].items():
        print(f"{name:<25}" + "".join(f"{what:>12} {value:.4f}" for what, value in its.items()))


if __name__ == "__main__":
    run(main)
