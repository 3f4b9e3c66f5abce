"""Views: decided by seed, epoch and sample alone, and replayable in any batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.augment import WHOLE, crop_boxes, mixup, resized_crop
from pipeline.data.params import Augment
from pipeline.data.trivial import LEVELS, NARROW, OPERATIONS, trivial
from pipeline.data.views import STREAMS, Views, draw

CPU = torch.device("cpu")
N, CLASSES = 200, 10
NOTHING: dict[str, Any] = {"flip": False, "shift": 0}
ONE_EACH: dict[str, dict[str, Any]] = {
    "flip": {"flip": True},
    "shift": {"shift": 2},
    "crop": {"crop": 0.3},
    "trivial": {"trivial": True},
    "rand": {"rand": {"operations": 2, "magnitude": 9}},
    "erase": {"erase": 0.4},
    "mixup": {"mixup": 0.4},
    "cutmix": {"cutmix": 1.0},
}
ALL: dict[str, Any] = {key: value for one in ONE_EACH.values() for key, value in one.items()}
OPTIONS = ONE_EACH | {"all": ALL, "nothing": {}}


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def options(asked: dict[str, Any]) -> Augment:
    return Augment(**NOTHING | asked)


def split(channels: int = 3, size: int = 10) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (N, size, size, channels), dtype=np.uint8)
    return images, random.integers(0, CLASSES, N)


def views(asked: dict[str, Any], seed: int = 17, channels: int = 3) -> Views:
    return Views(*split(channels), options(asked), classes=CLASSES, seed=seed)


def constant(asked: dict[str, Any], values: np.ndarray) -> Views:
    """Views of images that are one grey each, a class of its own each."""
    images = np.broadcast_to(values.astype(np.uint8)[:, None, None, None], (len(values), 9, 7, 1))
    return Views(images, np.arange(len(values)), options(asked), classes=len(values), seed=1)


def everyone(made: Views, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return made.batch(epoch, np.arange(len(made)), CPU)


@pytest.mark.parametrize("asked", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_is_the_same_in_every_batch(asked: dict[str, Any], channels: int) -> None:
    pixels, labels = everyone(views(asked, channels=channels), epoch=3)
    replayed = views(asked, channels=channels)
    random = np.random.default_rng(2)
    for epoch, size in ((3, 1), (2, 7), (3, 33), (3, 150), (3, 2 * N)):
        samples = random.integers(0, N, size)  # any order, some of them twice
        again, their_labels = replayed.batch(epoch, samples, CPU)
        if epoch == 3:
            assert torch.equal(again, pixels[samples])
            assert torch.equal(their_labels, labels[samples])


@pytest.mark.parametrize("asked", ONE_EACH.values(), ids=ONE_EACH)
def test_another_seed_or_epoch_gives_other_views(asked: dict[str, Any]) -> None:
    made = views(asked)
    pixels, _ = everyone(made)
    for others, _ in (everyone(made, epoch=1), everyone(views(asked, seed=18))):
        changed = (pixels != others).flatten(1).any(1).float().mean()
        assert changed > 0.3


def test_nothing_asked_nothing_changed() -> None:
    images, labels = split()
    pixels, given = everyone(views({}))
    assert np.array_equal(pixels, images) and pixels.dtype == torch.uint8
    assert np.array_equal(given, labels) and given.dtype == torch.int64


@pytest.mark.parametrize("name", ONE_EACH)
def test_turning_an_option_on_leaves_the_draws_of_the_others(name: str) -> None:
    others = {key: value for key, value in ALL.items() if key != name}
    without = draw(options(others), N, 3, seed=17, epoch=5)
    everything = draw(options(ALL), N, 3, seed=17, epoch=5)
    assert set(STREAMS) == everything.keys() > without.keys()
    for stream, values in without.items():
        if stream == "takes_mixup" and name in ("mixup", "cutmix"):
            assert values.all() == (name == "cutmix") and values.any() == values.all()
        else:
            assert np.array_equal(values, everything[stream])


def test_no_two_streams_epochs_or_seeds_are_related() -> None:
    columns = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (17, 17)):
        same_alpha = options(ALL | {"mixup": ALL["cutmix"]})
        draws = draw(same_alpha, 4000, 3, seed=seed, epoch=epoch)
        if (seed, epoch) == (0, 1):
            del draws["flip"]  # epoch 0's, the other way round
        columns += [values.reshape(4000, -1).astype(float) for values in draws.values()]
    correlation = np.corrcoef(np.concatenate(columns, axis=1), rowvar=False)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_a_longer_split_has_the_same_draws_but_other_partners() -> None:
    short, long = (draw(options(ALL), n, 3, seed=17, epoch=0) for n in (N, 3 * N))
    for stream in set(STREAMS) - {"partner"}:
        assert np.array_equal(short[stream], long[stream][:N])
    assert not np.array_equal(short["partner"], long["partner"][:N])


def test_all_draws_of_a_million_images_fit_into_100_megabytes() -> None:
    draws = draw(options(ALL), 1000, 3, seed=0, epoch=0)
    assert sum(values.nbytes for values in draws.values()) / 1000 * 1.2e6 < 100e6


def test_half_of_the_samples_are_mirrored_and_every_one_in_every_other_epoch() -> None:
    images, _ = split()
    found = []
    for epoch in range(5):
        pixels, _ = everyone(views({"flip": True}), epoch)
        same = (pixels.numpy() == images).all((1, 2, 3))
        mirrored = (pixels.numpy() == images[:, :, ::-1]).all((1, 2, 3))
        assert np.all(same ^ mirrored)
        found.append(mirrored)
    assert abs(np.mean(found[0]) - 0.5) < 4 * 0.5 / np.sqrt(N)
    assert all(np.array_equal(one, ~other) for one, other in itertools.pairwise(found))


def test_shifts_are_uniform_over_all_places_in_reach() -> None:
    shift = draw(options({"shift": 2}), 25_000, 3, seed=0, epoch=0)["shift"]
    places, counts = np.unique(shift, axis=0, return_counts=True)
    assert len(places) == 25 and np.abs(shift).max() == 2
    chi_squared = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_squared < 51.2  # of 24 degrees of freedom: exceeded once in a thousand


def test_a_shifted_image_is_where_its_draw_says() -> None:
    images, _ = split()
    drawn = draw(options({"shift": 2}), N, 3, seed=17, epoch=0)["shift"]
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    pixels, _ = everyone(views({"shift": 2}))
    for image, source, (y, x) in zip(pixels, padded, drawn, strict=True):
        assert np.array_equal(image, source[2 + y : 12 + y, 2 + x : 12 + x])


def test_every_operation_level_and_direction_is_drawn_alike() -> None:
    drawn = draw(options({"trivial": True}), 100_000, 3, seed=0, epoch=0)["trivial"]
    for values, bound in zip(drawn.T, (len(OPERATIONS), LEVELS, 2), strict=True):
        counts = np.bincount(values, minlength=bound)
        assert len(counts) == bound
        assert np.abs(counts / 100_000 - 1 / bound).max() < 4 * np.sqrt(1 / bound / 100_000)


def test_an_image_is_changed_as_its_draw_says() -> None:
    images, _ = split()
    operation, level, direction = draw(options({"trivial": True}), N, 3, seed=17, epoch=0)[
        "trivial"
    ].T
    pixels, _ = everyone(views({"trivial": True}))
    expected = trivial(torch.from_numpy(images), operation, (2 * direction - 1) * level)
    assert torch.equal(pixels, expected)


def test_randaugment_applies_its_operations_one_after_another() -> None:
    asked = {"rand": {"operations": 3, "magnitude": 12}}
    drawn = draw(options(asked), N, 3, seed=17, epoch=0)["rand"]
    assert drawn.shape == (N, 3, 2)
    expected = torch.from_numpy(split()[0])
    for i in range(3):
        operation, direction = drawn[:, i].T
        expected = trivial(expected, operation, (2 * direction - 1) * 12, NARROW)
    assert torch.equal(everyone(views(asked))[0], expected)


def test_randaugment_draws_operations_and_directions_alike() -> None:
    drawn = draw(options({"rand": {}}), 50_000, 3, seed=0, epoch=0)["rand"].reshape(-1, 2)
    for values, bound in zip(drawn.T, (len(OPERATIONS), 2), strict=True):
        counts = np.bincount(values, minlength=bound)
        assert len(counts) == bound
        assert np.abs(counts / 100_000 - 1 / bound).max() < 4 * np.sqrt(1 / bound / 100_000)


def test_partners_are_a_permutation_of_the_split_and_new_every_epoch() -> None:
    partners = [
        draw(options({"mixup": 0.2}), N, 3, seed=17, epoch=epoch)["partner"] for epoch in range(3)
    ]
    assert all(np.array_equal(np.sort(partner), np.arange(N)) for partner in partners)
    assert (partners[0] == partners[1]).mean() < 0.1 > (partners[1] == partners[2]).mean()


def test_mixup_labels_are_the_shares_that_the_pixels_show() -> None:
    values = np.random.default_rng(4).permutation(256)
    pixels, labels = everyone(constant({"mixup": 1.0}, values))
    assert labels.dtype == torch.float32
    assert torch.equal(labels.sum(1), torch.ones(256))
    assert torch.all((labels > 0).sum(1) <= 2)  # the own class and the partner's
    exact = labels.double() @ torch.from_numpy(values).double()
    shown = (exact + 0.5).floor().to(torch.uint8)
    assert torch.equal(pixels, shown[:, None, None, None].expand_as(pixels))
    own = labels.diagonal()
    assert own.min() < 0.1 and own.max() > 0.9


def test_cutmix_labels_are_the_shares_of_the_pixels_exactly() -> None:
    pixels, labels = everyone(constant({"cutmix": 1.0}, np.arange(256)))
    values = torch.arange(256, dtype=torch.uint8)
    own = (pixels == values[:, None, None, None]).flatten(1).sum(1)
    assert torch.equal(labels.diagonal(), (own.double() / (9 * 7)).float())
    counts = (pixels.flatten(1)[:, :, None] == values).sum(1)
    assert torch.allclose(labels, counts / (9 * 7), rtol=0, atol=1e-7)
    assert own.min() < 25 and own.max() > 60


def test_with_both_a_sample_takes_mixup_or_cutmix_by_a_toss() -> None:
    values = np.arange(256)
    both, _ = everyone(constant({"mixup": 1.0, "cutmix": 1.0}, values))
    alone = [everyone(constant({name: 1.0}, values))[0] for name in ("mixup", "cutmix")]
    as_mixup, as_cutmix = ((both == one).flatten(1).all(1) for one in alone)
    assert torch.all(as_mixup | as_cutmix)
    assert 0.35 < as_mixup.float().mean() < 0.65 and 0.35 < as_cutmix.float().mean() < 0.65


def test_what_is_mixed_are_the_two_views_of_this_epoch() -> None:
    single = {key: value for key, value in ALL.items() if key not in ("mixup", "cutmix")}
    pixels, _ = everyone(views(single), epoch=2)
    drawn = draw(options(single | {"mixup": 0.4}), N, 3, seed=17, epoch=2)
    mixed, _ = everyone(views(single | {"mixup": 0.4}), epoch=2)
    weights = torch.from_numpy(drawn["mixup"])
    assert torch.equal(mixed, mixup(pixels, pixels[drawn["partner"]], weights))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
@pytest.mark.parametrize(("stream", "unit"), [("mixup", WHOLE), ("cutmix", 1)])
def test_shares_are_drawn_from_a_beta_distribution(stream: str, unit: int, alpha: float) -> None:
    n = 40_000
    share = draw(options({stream: alpha}), n, 3, seed=0, epoch=0)[stream] / unit
    variance = 1 / (4 * (2 * alpha + 1))  # of a Beta distribution whose mean is 1/2
    assert share.min() >= 0 and share.max() <= 1
    assert abs(share.mean() - 0.5) < 4 * np.sqrt(variance / n)
    assert abs(share.var() / variance - 1) < 4 * np.sqrt(2 / n)


class Counted:
    """Images that note which rows are read."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.shape, self.read = images, images.shape, []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        self.read += rows.tolist()
        return self.images[rows]


@pytest.mark.parametrize("asked", [{"flip": True}, ALL], ids=["flip", "all"])
@pytest.mark.parametrize("chosen", [(150, 3, 99, 3, 42), (3, 3, 150), (3, 42, 99)])
def test_only_the_rows_of_a_batch_are_read_once_and_in_file_order(
    asked: dict[str, Any], chosen: tuple[int, ...]
) -> None:
    images, labels = split()
    counted: Any = Counted(images)
    made = Views(counted, labels, options(asked), classes=CLASSES, seed=17)
    samples = np.array(chosen)
    made.batch(0, samples, CPU)
    needed = set(samples.tolist())
    if "mixup" in asked:
        needed |= set(draw(options(asked), N, 3, seed=17, epoch=0)["partner"][samples].tolist())
    assert counted.read == sorted(needed)


def test_a_memory_mapped_split_gives_the_same_views(tmp_path: Path) -> None:
    images, labels = split()
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    made = Views(mapped, labels, options(ALL), classes=CLASSES, seed=17)
    for one, other in zip(everyone(made), everyone(views(ALL)), strict=True):
        assert torch.equal(one, other)
    assert np.array_equal(mapped, images)


@pytest.mark.parametrize("asked", [{"crop": 0.5}, ALL, {"flip": True}], ids=["crop", "all", "flip"])
def test_crops_are_cut_from_all_of_an_image_and_other_views_from_its_centre(
    asked: dict[str, Any],
) -> None:
    """Every image is one colour on the left and another on the right, at both sizes."""
    larger, labels = np.zeros((N, 14, 14, 3), np.uint8), split()[1]
    larger[:, :, 7:] = split()[0][:, :1, :1]
    images = larger[:, 2:-2, 2:-2]
    made = Views(larger, labels, options(asked), classes=CLASSES, seed=17, size=10)
    plain = Views(images, labels, options(asked), classes=CLASSES, seed=17)
    assert np.array_equal(made.known[0], images)
    found, expected = everyone(made)[0], everyone(plain)[0]
    assert found.shape == expected.shape
    if "crop" not in asked:
        assert torch.equal(found, expected)
        return
    assert not torch.equal(found, expected)
    boxes = crop_boxes(draw(options(asked), N, 3, seed=17, epoch=0)["crop"], 0.5, 14, 14)
    if asked == {"crop": 0.5}:
        cut = resized_crop(torch.from_numpy(larger), torch.from_numpy(boxes), (10, 10))
        assert torch.equal(found, cut)


def test_labels_that_do_not_fit_the_images_are_told() -> None:
    images, labels = split()
    with pytest.raises(ValueError, match="200 images, but 199 labels"):
        Views(images, labels[1:], options({}), classes=CLASSES, seed=0)
