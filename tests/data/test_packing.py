"""Arrays that grow on disk, and splits in proportion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.packing import ArrayWriter, draw


def random() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize("counts", [[], [1], [3, 0, 1234, 99999]])
def test_what_was_appended_is_read_back(tmp_path: Path, counts: list[int]) -> None:
    parts = [np.full((n, 2, 3), i, np.uint8) for i, n in enumerate(counts)]
    with ArrayWriter(tmp_path / "a.npy", (2, 3), np.uint8) as writer:
        for part in parts:
            writer.append(part)
    expected = np.concatenate([np.empty((0, 2, 3), np.uint8), *parts])
    assert np.array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), expected)


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError), ArrayWriter(tmp_path / "a.npy", (2,), np.uint8) as writer:
        writer.append(np.zeros((1, 2), np.float32))


def test_a_draw_keeps_the_proportions_of_the_classes() -> None:
    labels = random().permutation(np.repeat([0, 1, 2], [600, 300, 100])).astype(np.int64)
    chosen = draw(labels, 100, random())
    assert np.bincount(labels[chosen]).tolist() == [60, 30, 10]
    assert np.array_equal(chosen, np.unique(chosen))


@pytest.mark.parametrize("count", [1, 7, 33, 99, 100])
def test_a_draw_has_the_size_that_was_asked(count: int) -> None:
    labels = np.repeat([0, 1, 2], [61, 32, 7]).astype(np.int64)
    assert len(draw(labels, count, random())) == count


def test_a_rare_class_gives_one_and_keeps_one() -> None:
    labels = np.repeat([0, 1], [1000, 2]).astype(np.int64)
    assert np.bincount(labels[draw(labels, 100, random())]).tolist() == [99, 1]
    assert np.bincount(labels[draw(labels, 900, random())])[1] == 1


def test_the_seed_decides() -> None:
    labels = np.repeat([0, 1], 50).astype(np.int64)
    assert np.array_equal(draw(labels, 20, random()), draw(labels, 20, random()))
    assert not np.array_equal(
        draw(labels, 20, random()), draw(labels, 20, np.random.default_rng(4))
    )
