"""Stage `train_teacher`: a network that learns from labels, and from images without them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pipeline.core.errors import PipelineError
from pipeline.data.params import ViewPlan
from pipeline.data.records import PACKED, Manifest
from pipeline.data.unlabelled import load_shown
from pipeline.data.views import Views, seed_of
from pipeline.networks.build import build_network
from pipeline.networks.inference import set_up_torch
from pipeline.networks.pixels import PixelsToLogits
from pipeline.networks.pretrained import start_from
from pipeline.networks.records import TEACHERS, Normalisation
from pipeline.training.auto import facts, plan_recipe, plan_views, tell
from pipeline.training.balance import adjusted, log_prior
from pipeline.training.devices import launch
from pipeline.training.few_labels import Consistent, PairedViews, check_unmixed
from pipeline.training.objective import Objective, Terms
from pipeline.training.params import Recipe, TeacherParams
from pipeline.training.task import Task, train_and_write


class Supervised(Objective):
    """Cross entropy with smoothed labels on raw pixels; see `log_prior`."""

    log_prior: torch.Tensor | None

    def __init__(
        self, model: PixelsToLogits, label_smoothing: float, log_prior: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self.register_buffer("log_prior", log_prior, persistent=False)

    def forward(
        self,
        pixels: torch.Tensor,
        labels: torch.Tensor,
        recorded: torch.Tensor | None = None,  # noqa: ARG002 - students use it
        progress: float | torch.Tensor = 0.0,  # noqa: ARG002
    ) -> Terms:
        logits = adjusted(self.model(pixels), self.log_prior)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return {"cross_entropy": loss}


def train_teacher(params: TeacherParams, name: str) -> None:
    """Stage `train_teacher@T`: models/teachers/T/, metrics/teachers/T.json, metrics/curves/T/.

    Args:
        params: what the stage reads. The network starts from a seeded initialisation, timm's
            weights or a checkpoint.
        name: the teacher T.
    """
    teacher = params.teachers.zoo[name]
    fabric = launch(teacher.training)
    manifest = Manifest.read(PACKED / "manifest.json")
    size = manifest.image_size if teacher.input_size == "auto" else teacher.input_size
    set_up_torch(params.seed)
    network = build_network(
        teacher.network,
        classes=len(manifest.classes),
        channels=manifest.channels,
        image_size=size,
    )
    normalisation, started = start_from(
        network, teacher.network, params.checkpoints, manifest.classes, manifest.channels
    ) or (Normalisation(mean=manifest.mean, std=manifest.std), None)
    about = facts(manifest, size, teacher.views, started)
    plan = plan_views(teacher.views, about, "teachers")
    recipe = plan_recipe(teacher.training, about, "teachers")
    if fabric.is_global_zero:
        tell(name, started, plan, recipe, about)
    if plan.epochs == 0 and about.new_head:
        raise PipelineError(
            f"without training its classifier would stay random: {started}",
            where=f"teachers.zoo.{name}",
            fix="give it epochs, or weights that know these classes",
        )
    resized = None if size == manifest.image_size else size
    model = PixelsToLogits(network, normalisation, resized)
    objective, views = _lessons(params, name, model, manifest, plan, recipe)
    task = Task(
        name=name,
        kind="teachers",
        folder=TEACHERS / name,
        network=teacher.network,
        input_size=size,
        training=recipe,
        epochs=plan.epochs,
        seed=params.seed,
        settings=(teacher, plan, normalisation),
        started_from=started,
    )
    train_and_write(fabric, task, manifest, objective, views)


def _lessons(
    params: TeacherParams,
    name: str,
    model: PixelsToLogits,
    manifest: Manifest,
    plan: ViewPlan,
    recipe: Recipe,
) -> tuple[Objective, Views]:
    """What the teacher learns from: labels, and its own answers where images have none."""
    shown = load_shown(manifest, params.teachers.zoo[name].views)
    few = len(shown.images) > len(shown.known[0])
    views = (PairedViews if few else Views)(
        shown.images, shown.labels, plan.augment,
        classes=len(manifest.classes), seed=seed_of(name, params.seed), size=manifest.image_size,
        known=shown.known,
    )  # fmt: skip
    prior = log_prior(manifest.counts["train"].values(), recipe.balance)
    if not few:
        return Supervised(model, recipe.label_smoothing, prior), views
    check_unmixed(plan.augment, name)
    its, share = params.teachers.zoo[name].consistency, views.labelled_share
    return Consistent(model, recipe.label_smoothing, its, share, prior), views
