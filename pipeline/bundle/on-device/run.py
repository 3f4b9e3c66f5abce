"""Classifies images: classes with probabilities, likeliest first.

    python run.py FILE... [--top K] [--json]

A FILE is an image (Pillow must be installed) or an .npy array, uint8 [N, H, W, C].
"""

from __future__ import annotations

from common import FOLDER, BundleError, check_files, finish, identity, open_model, record

# isort: split

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def main() -> int:
    parser = argparse.ArgumentParser(description="Classify images.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="image or .npy file")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="classes to show; 3")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the CPU; 1")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    arguments = parser.parse_args()
    if arguments.top < 1 or arguments.threads < 1:
        parser.error("--top and --threads are at least 1")
    check_files()
    images = [found for file in arguments.files for found in _images(file)]
    run, versions = open_model(arguments.threads)
    classes = (FOLDER / "labels.txt").read_text(encoding="utf-8").splitlines()
    answers = [
        (name, _likeliest(run(pixels)[0], classes, arguments.top)) for name, pixels in images
    ]
    if arguments.json:
        rows = [{"image": name, "classes": found} for name, found in answers]
        answer = {"bundle": identity(), "runtime": versions, "images": rows}
        print(json.dumps(answer, indent=2, ensure_ascii=False))
        return 0
    for name, found in answers:
        print(f"{name}: " + ", ".join(f"{one['class']} {one['probability']:.1%}" for one in found))
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"by {used}", file=sys.stderr)
    return 0


def _images(file: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Name and pixels uint8 [1, H, W, C] of every image in a file."""
    size, channels = record()["image_size"], record()["channels"]
    if not file.is_file():
        raise BundleError(f"{file}: there is no such file")
    if file.suffix != ".npy":
        yield str(file), _load(file, size, channels, record()["stored_size"])[None]
        return
    try:
        array = np.load(str(file), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"{file}: not an .npy file: {error}") from None
    if array.dtype != np.uint8 or array.shape[1:] != (size, size, channels):
        raise BundleError(
            f"{file}: holds {array.dtype} {list(array.shape)}",
            f"give raw pixels, uint8 [N, {size}, {size}, {channels}]",
        )
    for i in range(len(array)):
        yield f"{file}[{i}]", np.ascontiguousarray(array[i : i + 1])


def _load(file: Path, size: int, channels: int, resize: int) -> NDArray[np.uint8]:
    """Pixels uint8 [H, W, C] of an image file."""
    try:
        from pixels import ImageError, load_image  # type: ignore[import-not-found]
    except ImportError as error:
        raise BundleError(
            f"{file}: image files need Pillow ({error})", "pip install pillow, or give .npy files"
        ) from None
    try:
        pixels: NDArray[np.uint8] = load_image(file, size, channels, resize)
    except ImageError as error:
        raise BundleError(f"{file}: {error}") from None
    return pixels


def _likeliest(logits: NDArray[np.float32], classes: list[str], top: int) -> list[dict[str, Any]]:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = powers / powers.sum()
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [{"class": classes[i], "probability": round(float(probabilities[i]), 6)} for i in order]


if __name__ == "__main__":
    finish(main)
