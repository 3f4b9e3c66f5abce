"""What `auto` finds: the default run's recipe, few and many images, large ones, weights."""

from __future__ import annotations

import pytest

from pipeline.cli.params import load_params
from pipeline.core.errors import PipelineError
from pipeline.data.params import Augment, ViewPlan, Views
from pipeline.training.auto import Facts, Kind, plan_int8_phase, plan_recipe, plan_views, tell
from pipeline.training.params import Auto, Training
from tests.training.conftest import ROOT

FASHION = Facts(images=55_200, size=28, pretrained=False)


def test_the_default_run_has_the_recipe_that_it_was_tuned_for() -> None:
    params = load_params(ROOT / "params.yaml")
    (teacher,) = (params.teachers.zoo[name] for name in params.teachers.enabled)
    small = Augment(flip=True, shift=1)
    cases: list[tuple[Views, Kind, int]] = [
        (teacher.views, "teachers", 3),
        (params.views, "students", 4),
    ]
    for views, kind, epochs in cases:
        assert plan_views(views, FASHION, kind) == ViewPlan(epochs=epochs, augment=small)
    found = plan_recipe(teacher.training, FASHION, "teachers")
    assert (found.batch_size, found.optimizer, found.lr) == (256, "muon", 0.03)
    found = plan_recipe(params.distill.training, FASHION, "students")
    assert (found.batch_size, found.optimizer, found.lr) == (128, "muon", 0.005)
    assert (found.weight_decay, found.warmup, found.layer_decay) == (0.02, 0.15, 1.0)
    assert found.freeze == "none"


@pytest.mark.parametrize("kind", ["teachers", "students"])
@pytest.mark.parametrize("size", [8, 28, 64, 224, 512, 1024])
@pytest.mark.parametrize("images", [2, 3, 7, 40, 208, 2_000, 50_000, 400_000, 10**8])
@pytest.mark.parametrize("pretrained", [False, True])
def test_every_number_of_images_gets_a_recipe_that_fits(
    images: int, size: int, kind: Kind, pretrained: bool
) -> None:
    about = Facts(images, size, pretrained)
    recipe, views = plan_recipe(Training(), about, kind), plan_views(Views(), about, kind)
    assert 2 <= recipe.batch_size <= images
    assert recipe.batch_size * size**2 <= max(32 * 224**2, 2 * size**2)
    assert 2 <= views.epochs <= (8 if pretrained else 80)
    steps = images // recipe.batch_size
    assert steps >= 12 or recipe.batch_size <= 8
    assert 1e-5 < recipe.lr < 0.05


def test_what_is_set_is_taken() -> None:
    weak = Augment(flip=False, shift=0)
    views = Views(epochs=7, augment=weak)
    assert plan_views(views, FASHION, "students") == ViewPlan(epochs=7, augment=weak)
    training = Training(batch_size=48, lr=0.1, optimizer="sgd", freeze="none", layer_decay=0.5)
    recipe = plan_recipe(training, Facts(1000, 224, True, new_head=True), "students")
    assert (recipe.batch_size, recipe.lr, recipe.optimizer) == (48, 0.1, "sgd")
    assert (recipe.layer_decay, recipe.freeze, recipe.weight_decay) == (0.5, "none", 0.05)


@pytest.mark.parametrize(("kind", "epochs", "batch"), [("teachers", 8, 64), ("students", 4, 128)])
def test_teachers_that_learn_from_images_without_labels_see_more_in_smaller_batches(
    kind: Kind, epochs: int, batch: int
) -> None:
    about = Facts(images=55_200, size=28, pretrained=False, unlabelled=54_200)
    assert plan_views(Views(), about, kind).epochs == epochs
    assert plan_recipe(Training(), about, kind).batch_size == batch


def test_weights_with_a_new_classifier_fit_it_first() -> None:
    for new_head, freeze in ((True, "head_first"), (False, "none")):
        recipe = plan_recipe(Training(), Facts(208, 224, True, new_head), "students")
        assert (recipe.freeze, recipe.batch_size, recipe.layer_decay) == (freeze, 16, 0.75)


@pytest.mark.parametrize(
    ("images", "pretrained", "batch_norm"),
    [(208, True, "frozen"), (50_000, True, "train"), (208, False, "train")],
)
def test_few_images_keep_the_statistics_of_the_weights(
    images: int, pretrained: bool, batch_norm: str
) -> None:
    about = Facts(images, 224, pretrained)
    assert plan_recipe(Training(), about, "students").batch_norm == batch_norm
    given = Training(batch_norm="train")
    assert plan_recipe(given, about, "students").batch_norm == "train"


@pytest.mark.parametrize(
    ("images", "pretrained", "share"),
    [(208, False, 0.2), (208, True, 0.0), (10_000, True, 0.2), (55_200, False, 0.2)],
)
def test_few_images_that_fine_tune_weights_have_no_phase_under_rounding(
    images: int, pretrained: bool, share: float
) -> None:
    about = Facts(images, 224, pretrained)
    assert plan_int8_phase("auto", about) == share
    assert plan_int8_phase(0.4, about) == 0.4


@pytest.mark.parametrize("asked", ["auto", 0])
def test_branches_that_do_not_ship_never_learn_under_rounding(asked: Auto | float) -> None:
    about = Facts(100_000, 28, pretrained=False)
    assert plan_int8_phase(asked, about, branches=True) == 0
    with pytest.raises(PipelineError, match="would not be that of what ships"):
        plan_int8_phase(0.2, about, branches=True)


@pytest.mark.parametrize(("images", "size", "hint"), [(208, 224, True), (208, 28, False),
                                                      (20_000, 224, False)])  # fmt: skip
def test_few_photos_from_random_weights_are_told_of_better_ones(
    images: int, size: int, hint: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    about = Facts(images, size, pretrained=False)
    plan, recipe = (
        plan_views(Views(), about, "students"),
        plan_recipe(Training(), about, "students"),
    )
    tell("net", None, plan, recipe, about)
    assert ("see `weights`" in capsys.readouterr().out) == hint
