"""Augmentation: its own draw for every sample, decided by the generator alone."""

from __future__ import annotations

import torch

from pipeline.data.augment import augment
from pipeline.params import Augment

NOTHING = Augment(flip=False, shift=0, erase=0.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int = 64, size: int = 8, channels: int = 3) -> torch.Tensor:
    return torch.randint(256, (n, size, size, channels), generator=generator(9)).to(torch.uint8)


def test_nothing_asked_nothing_changed() -> None:
    assert torch.equal(augment(batch(), NOTHING, generator()), batch())


def test_a_flip_mirrors_about_half_of_the_samples() -> None:
    images = batch()
    flipped = augment(images, Augment(flip=True, shift=0), generator())
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(2)).flatten(1).all(1)
    assert torch.all(same ^ mirrored)
    assert 16 < mirrored.sum() < 48


def test_a_shift_moves_by_whole_pixels_and_repeats_the_border() -> None:
    images = batch(n=256)
    shifted = augment(images, Augment(flip=False, shift=2), generator())
    padded = torch.nn.functional.pad(
        images.permute(0, 3, 1, 2).float(), (2, 2, 2, 2), mode="replicate"
    ).permute(0, 2, 3, 1)
    seen = set()
    for image, source in zip(shifted, padded, strict=True):
        places = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(source[y : y + 8, x : x + 8].to(torch.uint8), image)
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 25  # every offset, not one for the whole batch


def test_erasing_changes_a_rectangle_of_the_chosen_share_of_samples() -> None:
    images = batch(n=400, size=16)
    erased = augment(images, Augment(flip=False, shift=0, erase=0.5), generator())
    changed = (erased != images).any(dim=3)
    share = changed.flatten(1).any(1).float().mean()
    assert 0.4 < share < 0.6
    for mask in changed[changed.flatten(1).any(1)]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert box <= 0.5 * 16 * 16
        assert mask.sum() > 0.9 * box  # noise may repeat a pixel by chance


def test_the_same_generator_gives_the_same_images() -> None:
    options = Augment(flip=True, shift=2, erase=0.3)
    one, two = (augment(batch(), options, generator(4)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, augment(batch(), options, generator(5)))
