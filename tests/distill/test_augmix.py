"""Mixes: convex, decided by seed, epoch and image alone, and taught by recorded logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.cli.params import Params
from pipeline.core.errors import PipelineError
from pipeline.data.augment import WHOLE
from pipeline.data.params import Augment
from pipeline.data.trivial import OPERATIONS, trivial
from pipeline.data.views import Views
from pipeline.distill.augmix import MIXED, RANGES, Draws, MixedViews, draw, mixes
from pipeline.distill.params import Augmix
from pipeline.distill.student import distill_student
from pipeline.networks.records import ModelCard
from tests.distill.conftest import teach
from tests.training.conftest import AUGMENT, STUDENT, split

CPU = torch.device("cpu")
SETTINGS = Augmix(method="augmix", mixes=2, severity=3)


def pixels(n: int, channels: int = 1, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    shape = (n, size, size, channels)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def mixed_views(settings: Augmix = SETTINGS, augment: Augment = AUGMENT, seed: int = 4) -> Views:
    images, labels = split(1)
    about: dict[str, Any] = {"classes": 2, "size": 16, "known": (images, labels)}
    return MixedViews(images, labels, augment, settings=settings, seed=seed, **about)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("many", [1, 2])
def test_a_mix_is_the_weighted_mean_of_its_view_and_its_chains(many: int, channels: int) -> None:
    settings = Augmix(method="augmix", mixes=many, chains=2, depth=2, severity=10)
    views, drawn = pixels(40, channels), draw(settings, 40, seed=1, epoch=0)
    found = mixes(views, drawn)
    assert found.shape == (many, *views.shape) and found.dtype == torch.uint8
    for mix in range(many):
        expected = drawn.weights[:, mix, 0, None, None, None] * views.numpy().astype(np.float64)
        for chain in range(2):
            changed = views
            for step in range(2):
                which = drawn.operations[:, mix, chain, step], drawn.levels[:, mix, chain, step]
                changed = trivial(changed, *which, RANGES)
            weight = drawn.weights[:, mix, 1 + chain, None, None, None]
            expected += weight * changed.numpy().astype(np.float64)
        assert np.abs(found[mix].numpy() - expected / WHOLE).max() <= 0.5


def test_draws_are_what_the_paper_says() -> None:
    """Of 20,000 views: m is uniform, w uniform on the simplex, chains have 1 to 3 operations."""
    drawn = draw(SETTINGS, 20_000, seed=3, epoch=1)
    assert drawn.operations.shape == drawn.levels.shape == (20_000, 2, 3, 3)
    assert (drawn.weights >= 0).all() and (drawn.weights.sum(2) == WHOLE).all()
    own = drawn.weights[..., 0] / WHOLE
    assert own.mean() == pytest.approx(1 / 2, abs=0.01)
    assert own.var() == pytest.approx(1 / 12, abs=0.005)
    among = drawn.weights[..., 1:] / (1 - own[..., None]).clip(1e-9) / WHOLE
    among = among[own < 0.9]
    assert among.mean(0) == pytest.approx([1 / 3] * 3, abs=0.01)
    assert among.var(0) == pytest.approx([1 / 18] * 3, abs=0.005)
    names = np.array(OPERATIONS)[drawn.operations]
    lengths = (names != "identity").sum(3)
    assert [(lengths == n).mean() for n in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.01)
    assert (names[..., 0] != "identity").all(), "a chain is filled from its beginning"
    shares = [(names[..., 0] == name).mean() for name in MIXED]
    assert shares == pytest.approx([1 / len(MIXED)] * len(MIXED), abs=0.01)
    levels = np.abs(drawn.levels)
    assert (levels.min(), levels.max()) == (1, 9)
    assert (drawn.levels > 0).mean() == pytest.approx(0.5, abs=0.01)


def test_the_operations_leave_out_what_is_measured() -> None:
    assert len(MIXED) == 9 and set(MIXED) < set(OPERATIONS)
    assert not {"brightness", "contrast", "color", "sharpness"} & set(MIXED)


def test_a_mix_depends_on_seed_epoch_and_image_alone() -> None:
    views, plain = mixed_views(), Views(*split(1), AUGMENT, classes=2, seed=4, size=16)
    some = np.array([5, 90, 17])
    whole, labels = views.batch(1, np.arange(96), CPU)
    part, truth = views.batch(1, some, CPU)
    assert whole.shape == (3 * 96, 16, 16, 1) and torch.equal(truth, labels[some])
    assert torch.equal(part, whole[np.concatenate([some, 96 + some, 2 * 96 + some])])
    assert torch.equal(whole[:96], plain.batch(1, np.arange(96), CPU)[0])
    assert not torch.equal(whole[96:192], whole[192:])
    assert torch.equal(mixed_views().batch(1, some, CPU)[0], part)
    for other in (views.batch(0, some, CPU)[0], mixed_views(seed=5).batch(1, some, CPU)[0]):
        assert not torch.equal(other[3:], part[3:])


def test_the_draws_of_a_view_do_not_depend_on_how_many_there_are() -> None:
    few, many = (draw(SETTINGS, n, seed=1, epoch=2) for n in (30, 50))
    first = many.of(np.arange(30))
    for name in Draws.__dataclass_fields__:
        assert np.array_equal(getattr(few, name), getattr(first, name))


def test_many_large_images_are_changed_in_parts() -> None:
    settings = Augmix(method="augmix", mixes=1)
    views, drawn = pixels(2, 3, size=500), draw(settings, 2, seed=1, epoch=0)
    one_by_one = [mixes(views[[i]], drawn.of(np.array([i]))) for i in range(2)]
    assert torch.equal(mixes(views, drawn), torch.cat(one_by_one, 1))


def test_mixed_labels_are_those_of_the_views() -> None:
    views = mixed_views(augment=Augment(flip=True, mixup=0.4))
    shown, labels = views.batch(0, np.arange(8), CPU)
    assert shown.shape[0] == 24 and labels.shape == (8, 2)


def test_students_learn_from_mixes_and_from_attacks_and_their_cards_say_so(
    configured: Callable[..., Params], capsys: pytest.CaptureFixture[str]
) -> None:
    """From the same recorded logits as a plain student, whose recipe turns it off."""
    own = configured().students.zoo[STUDENT].model_dump()
    rslad = {"method": "rslad", "steps": 1}
    zoo = {
        STUDENT: own,
        "attacked": own | {"recipe": {"robust": rslad}},
        "plain": own | {"recipe": {"robust": None}},
    }
    params = configured(
        students={"enabled": list(zoo), "zoo": zoo},
        distill={"robust": {"method": "augmix"}},
    )
    teach(params)
    capsys.readouterr()
    cards = {}
    for name in zoo:
        distill_student(params, name)
        cards[name] = ModelCard.read(Path(f"models/students/{name}/card.json"))
    told = capsys.readouterr().out
    assert f"{STUDENT}: AugMix: 15% of its losses are on 1 mix of every view" in told
    assert "attacked: RSLAD: 83% of its losses" in told and "plain: RSLAD" not in told
    assert cards[STUDENT].recipe["robust"]["consistency"] == 0.25
    assert cards["attacked"].recipe["robust"] == rslad | {
        "epsilon": 8, "step_size": 2, "share": 5 / 6
    }  # fmt: skip
    assert "robust" not in cards["plain"].recipe
    assert len({card.weights_digest for card in cards.values()}) == 3


def test_what_a_recipe_of_its_own_says_is_told_there(configured: Callable[..., Params]) -> None:
    own = configured().students.zoo[STUDENT].model_dump()
    bad = own | {"recipe": {"robust": {"method": "rslad", "epsilon": 0}}}
    with pytest.raises(PipelineError, match=rf"students.zoo.{STUDENT}.recipe.robust.epsilon"):
        configured(students={"enabled": [STUDENT], "zoo": {STUDENT: bad}})
