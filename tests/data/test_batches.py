"""Fewer of larger images are computed at once; of small ones as many as ever."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.batches import PIXELS, batches, images_per_call


@pytest.mark.parametrize("most", [32, 64, 250, 500, 512])
@pytest.mark.parametrize("side", [1, 28, 32])
def test_small_images_are_computed_by_the_old_numbers_which_results_depend_on(
    most: int, side: int
) -> None:
    assert images_per_call(most, side, side) == most


@pytest.mark.parametrize(("side", "images"), [(64, 128), (128, 32), (224, 10), (512, 2), (4000, 1)])
def test_the_pixels_of_a_batch_have_a_bound_but_for_a_single_image(side: int, images: int) -> None:
    assert images_per_call(500, side, side) == images
    assert images * side * side <= PIXELS or images == 1


def test_all_images_are_there_in_order_and_none_is_copied() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 300, 600, 1), np.uint8)
    parts = list(batches(images, 500))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert np.array_equal(np.concatenate(parts), images)
    assert all(np.shares_memory(part, images) for part in parts)
