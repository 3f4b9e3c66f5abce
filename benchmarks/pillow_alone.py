"""Decode JPEGs and resize their centre squares by Pillow, on all cores, and nothing else.

What `benchmarks.scale` compares the stage `prepare` with: `python -m benchmarks.pillow_alone FOLDER
SIZE`. It imports Pillow and NumPy alone, so that starting its processes takes little.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image


def by_pillow(file: Path, size: int) -> None:
    """Decode all of a JPEG and resize its centre square to `size`, bilinearly."""
    with Image.open(file) as image:
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


if __name__ == "__main__":
    folder, wanted = sys.argv[1:]
    files = sorted(Path(folder).rglob("*.jpg"))
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        pool.map(partial(by_pillow, size=int(wanted)), files, chunksize=27)
        pool.close()
        pool.join()
