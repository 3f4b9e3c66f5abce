"""What `auto` stands for in a recipe: rules on the number of images, their size and the weights.

The rules are explained in docs/own-images.md. They are applied when training starts, as they need
the packed data; what they found is printed and recorded in the network's card.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.core.errors import PipelineError
from pipeline.data.params import Augment, ViewPlan, Views
from pipeline.data.records import Manifest
from pipeline.data.unlabelled import epoch_images
from pipeline.networks.records import StartedFrom
from pipeline.training.params import Auto, Recipe, Training

Kind = Literal["teachers", "students"]

SMALL = 64
"""Images of at most so many pixels a side are no photos: crops would lose too much of them."""

SHOWN: dict[Kind, int] = {"teachers": 165_600, "students": 220_800}
"""Images that a network sees in all: three and four epochs of Fashion-MNIST's 55,200."""

MOST_EPOCHS = 80
FINE_TUNING = 8
"""Epochs of few images: networks from random weights, and those that start from weights."""

MOST_IMAGES: dict[Kind, int] = {"teachers": 256, "students": 128}
"""In a batch. Students take more and smaller steps."""

FEW_LABELS = 64
"""In a batch of teachers that learn from images without labels, too: they gain by more steps."""

FEW_LABELS_SHOWN = 440_000
"""Images that teachers see where some have no label: their own answers are few and often wrong at
first."""

MOST_PIXELS = 32 * 224 * 224
"""In a batch, which bounds the memory of a step."""

STEPS = 12
"""Steps that an epoch has at least, as far as a batch of `FEWEST` images allows."""

FEWEST = 8

FINE_TUNING_LR = 0.001
"""Of AdamW for a batch of 32; the last layer's."""

FEW_IMAGES = 10_000
"""Fewer than these do not replace the statistics that batch norms bring with their weights: some
dozen small batches give noisy ones. Networks from random weights learn little of so few photos."""

SCRATCH_LR: dict[Kind, float] = {"teachers": 0.03, "students": 0.005}
"""Of Muon for a batch of `MOST_IMAGES`. At 0.02 ReLU channels of students die in short runs."""

INT8_PHASE = 0.2
"""Share of a student's steps. Few images that fine-tune weights have no such phase: often an early
epoch is the best, and int8 loses nothing by calibration alone."""

IMBALANCED = 2.0
"""Classes whose sizes differ by a larger factor are balanced."""


@dataclass(frozen=True)
class Facts:
    """What the rules depend on."""

    images: int
    """That an epoch shows, of the train split and of those without labels."""
    size: int
    """Height and width of the network's input, in pixels."""
    pretrained: bool
    """Whether the network starts from weights."""
    new_head: bool = False
    """Whether its classifier does not, but the rest does."""
    imbalance: float = 1.0
    """Train images of the largest class per image of the smallest."""
    unlabelled: int = 0
    """Of `images`, those without labels."""


def facts(manifest: Manifest, size: int, views: Views, started: StartedFrom | None = None) -> Facts:
    """The facts about packed data and a network that takes images of `size` pixels.

    Args:
        manifest: of the packed data.
        size: height and width of the network's input.
        views: which images it sees.
        started: the weights that it starts from; None for random ones.
    """
    new_head = started is not None and bool(started.new)
    counts = manifest.counts["train"].values()
    known, unknown = epoch_images(manifest, views)
    imbalance = max(counts) / min(counts)
    return Facts(known + unknown, size, started is not None, new_head, imbalance, unknown)


def plan_views(views: Views, about: Facts, kind: Kind) -> ViewPlan:
    """`views` with every `auto` replaced.

    Args:
        views: as in params.yaml.
        about: the data and the network.
        kind: of the network.
    """
    epochs, augment = views.epochs, views.augment
    if epochs == "auto":
        most = FINE_TUNING if about.pretrained else MOST_EPOCHS
        few_labels = kind == "teachers" and about.unlabelled > 0
        shown = FEW_LABELS_SHOWN if few_labels else SHOWN[kind]
        epochs = min(max(round(shown / about.images), 2), most)
    if augment == "auto":
        photos = about.size > SMALL
        augment = Augment(flip=True, shift=0, crop=0.5) if photos else Augment(flip=True, shift=1)
    return ViewPlan(epochs=epochs, augment=augment)


def plan_recipe(training: Training, about: Facts, kind: Kind) -> Recipe:
    """`training` with every `auto` replaced.

    Args:
        training: as in params.yaml.
        about: the data and the network.
        kind: of the network.
    """
    fitting = min(MOST_PIXELS / about.size**2, max(about.images / STEPS, FEWEST))
    most = FEW_LABELS if kind == "teachers" and about.unlabelled else MOST_IMAGES[kind]
    found_size = max(2, min(most, 2 ** int(math.log2(fitting)), about.images))
    batch = found_size if training.batch_size == "auto" else training.batch_size
    if about.pretrained:
        lr = FINE_TUNING_LR * math.sqrt(batch / 32)
        found = {"optimizer": "adamw", "weight_decay": 0.05, "layer_decay": 0.75}
    else:
        lr = SCRATCH_LR[kind] * math.sqrt(batch / MOST_IMAGES[kind])
        found = {"optimizer": "muon", "weight_decay": 0.02, "layer_decay": 1.0}
    frozen = about.pretrained and about.images < FEW_IMAGES
    found |= {
        "lr": lr,
        "warmup": 0.15,
        "freeze": "head_first" if about.new_head else "none",
        "balance": "logit_adjusted" if about.imbalance > IMBALANCED else "none",
        "batch_norm": "frozen" if frozen else "train",
    }
    given = {name: getattr(training, name) for name in Training.model_fields}
    chosen = {name: found.get(name) if value == "auto" else value for name, value in given.items()}
    return Recipe.model_validate(chosen | {"batch_size": batch})


def plan_int8_phase(asked: Auto | float, about: Facts, branches: bool = False) -> float:
    """The share of a student's steps, the last ones, that compute under int8's rounding.

    Args:
        asked: of params.yaml.
        about: what the student learns from.
        branches: it ships with other layers than it learns with, see `networks.branches`.

    Raises:
        PipelineError: where such layers are to learn under rounding.
    """
    if branches and asked not in ("auto", 0):
        raise PipelineError(
            "the branches of this network become other layers once it is trained, so their "
            "rounding would not be that of what ships",
            where="distill.int8_phase",
            fix="set it to 0 for this student, in its `recipe`, or to auto",
        )
    if branches:
        return 0.0
    if asked != "auto":
        return asked
    return 0.0 if about.pretrained and about.images < FEW_IMAGES else INT8_PHASE


def tell(
    name: str,
    started: StartedFrom | None,
    plan: ViewPlan,
    recipe: Recipe,
    about: Facts,
    int8_phase: float = 0.0,
) -> None:
    """Print what a network is trained with, before its training."""
    if started is not None:
        print(f"{name}: starts from {started}")
    elif about.size > SMALL and about.images < FEW_IMAGES:
        few = f"{about.images:,} photos are few: see `weights` in docs/own-images.md"
        print(f"{name}: starts from random weights, for which {few}")
    freeze = {"none": "", "head_first": ", classifier first", "backbone": ", classifier alone"}
    balance = {
        "none": "",
        "sampling": ", every class equally often",
        "logit_adjusted": f", logits adjusted to classes that differ {about.imbalance:.1f}-fold",
    }
    phase = f", the last {int8_phase:.0%} of the steps under int8's rounding" if int8_phase else ""
    unlabelled = f" ({about.unlabelled:,} of them unlabelled)" if about.unlabelled else ""
    print(
        f"{name}: {about.images:,} images{unlabelled} at {about.size} px, {plan.epochs} epochs "
        f"in batches of {recipe.batch_size}, {recipe.optimizer} at {recipe.lr:.2g}"
        f"{freeze[recipe.freeze]}{balance[recipe.balance]}{phase}"
    )
