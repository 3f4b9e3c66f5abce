"""The user's own images: one folder per class, with or without splits above them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from pipeline.contracts import Record, Split
from pipeline.errors import PipelineError
from pipeline.files import sha256
from pipeline.progress import track

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


class IndexedFile(Record):
    path: str
    """Relative to the folder, with forward slashes."""
    split: Split
    label: int
    sha256: str


class FolderIndex(Record):
    """data/raw/index.json. Nothing is copied; the digests notice a changed file."""

    folder: str
    classes: tuple[str, ...]
    files: tuple[IndexedFile, ...]
    ignored: tuple[str, ...]


def index_folder(folder: Path) -> FolderIndex:
    """List every image of an ImageFolder with its class and split.

    `train`, `val` (or `valid`, `validation`) and `test` at the top are splits if nothing
    else lies there; otherwise every folder at the top is a class and all files are `train`.
    Raises `PipelineError` for a missing folder, a single class, a class without images and
    splits of different classes.
    """
    if not folder.is_dir():
        raise PipelineError(
            "there is no such folder", where=str(folder), fix="set `data.folder` in params.yaml"
        )
    tops = _folders(folder)
    has_splits = "train" in tops and all(name in SPLIT_NAMES for name in tops)
    roots: dict[Path, Split] = {folder: "train"}
    if has_splits:
        roots = {tops[name]: SPLIT_NAMES[name] for name in tops}
    classes = _classes(roots, folder)
    suffixes = set(Image.registered_extensions())
    found: list[tuple[Path, Split, int]] = []
    ignored: list[str] = []
    for root, split in roots.items():
        for label, name in enumerate(classes):
            files = [file for file in sorted((root / name).rglob("*")) if _visible(file, root)]
            images = [file for file in files if file.suffix.lower() in suffixes]
            ignored += [_relative(file, folder) for file in files if file not in set(images)]
            if not images:
                raise PipelineError(
                    f"the class `{name}` has no image",
                    where=str(root / name),
                    fix="add images, or remove the folder",
                )
            found += [(file, split, label) for file in images]
    with ThreadPoolExecutor() as pool:
        pending = pool.map(sha256, [file for file, _, _ in found])
        digests = list(track(pending, "reading", total=len(found)))
    entries = tuple(
        IndexedFile(path=_relative(file, folder), split=split, label=label, sha256=digest)
        for (file, split, label), digest in zip(found, digests, strict=True)
    )
    return FolderIndex(folder=str(folder), classes=classes, files=entries, ignored=tuple(ignored))


def _classes(roots: dict[Path, Split], folder: Path) -> tuple[str, ...]:
    names = {root: tuple(_folders(root)) for root in roots}
    train = next(names[root] for root, split in roots.items() if split == "train")
    if len(train) < 2:
        raise PipelineError(
            f"found {len(train)} class folders, a classifier needs at least two",
            where=str(folder),
            fix="put every class's images into a folder of the class's name",
        )
    for root, found in names.items():
        if found != train:
            odd = sorted(set(found) ^ set(train))
            raise PipelineError(
                f"its classes are not those of train; the difference is {', '.join(odd[:10])}",
                where=str(root),
                fix="give every split the same class folders",
            )
    return train


def _folders(folder: Path) -> dict[str, Path]:
    paths = sorted(path for path in folder.iterdir() if path.is_dir())
    return {path.name: path for path in paths if not path.name.startswith(".")}


def _visible(file: Path, root: Path) -> bool:
    parts = file.relative_to(root).parts
    return file.is_file() and not any(part.startswith(".") for part in parts)


def _relative(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()
