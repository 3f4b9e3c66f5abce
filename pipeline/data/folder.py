"""The user's own images: one folder per class, with or without splits above them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.core.progress import track
from pipeline.core.records import Record
from pipeline.data.params import Data
from pipeline.data.records import Split
from pipeline.data.sources import Read, Samples

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
INDEX = "index.json"

_PART = 64
"""Files that a thread takes at once."""


class IndexedFile(Record):
    """An image of the folder."""

    path: str
    """Relative to the folder, with forward slashes."""
    split: Split
    label: int
    sha256: str


class FolderIndex(Record):
    """data/raw/index.json. No image is copied; the digests show whether a file has changed."""

    folder: str
    classes: tuple[str, ...]
    files: tuple[IndexedFile, ...]
    ignored: tuple[str, ...]


def index_folder(folder: Path) -> FolderIndex:
    """List every image of an ImageFolder with its class and split.

    Top-level folders called `train`, `val` (or `valid`, `validation`) and `test`, in any case, are
    splits; otherwise every top-level folder is a class and all files are `train`.

    Raises:
        PipelineError: for splits beside other folders or without `train`, a
            single class, a class without images, splits of different classes, and a file that
            cannot be read or whose name is not UTF-8.
    """
    roots = _roots(folder)
    classes = _classes(roots, folder)
    suffixes = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found: list[tuple[Path, Split, int]] = []
    ignored: list[str] = []
    for loose in sorted({folder, *roots}):
        strays = [file for file in sorted(loose.iterdir()) if _visible(file, folder)]
        ignored += [_relative(file, folder) for file in strays if file.suffix.lower() in suffixes]
    for root, split in roots.items():
        for label, name in enumerate(classes):
            files = [file for file in sorted((root / name).rglob("*")) if _visible(file, root)]
            # A broken symbolic link is visible but is no file.
            images = [file for file in files if file.suffix.lower() in suffixes and file.is_file()]
            used = set(images)
            ignored += [_relative(file, folder) for file in files if file not in used]
            if not images:
                raise PipelineError(
                    f"the class `{name}` has no image",
                    where=str(root / name),
                    fix="add images, or remove the folder",
                )
            found += [(file, split, label) for file in images]
    digests = _digests([file for file, _, _ in found])
    entries = tuple(
        IndexedFile(path=_relative(file, folder), split=split, label=label, sha256=digest)
        for (file, split, label), digest in zip(found, digests, strict=True)
    )
    return FolderIndex(folder=str(folder), classes=classes, files=entries, ignored=tuple(ignored))


def _roots(folder: Path) -> dict[Path, Split]:
    """The folders that contain class folders, each with its split."""
    tops = _folders(folder)
    splits = {path: SPLIT_NAMES.get(name.lower()) for name, path in tops.items()}
    known: dict[Path, Split] = {path: split for path, split in splits.items() if split}
    if "train" in known.values() and len(known) == len(tops):
        return known
    if len(set(known.values())) > 1:
        raise PipelineError(
            f"found {', '.join(tops)}: splits or classes?",
            where=str(folder),
            fix="keep only `train`, `val` and `test` there (`train` is needed), or only classes",
        )
    return {folder: "train"}


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
    return not file.is_dir() and not any(part.startswith(".") for part in parts)


def _digests(files: list[Path]) -> list[str]:
    """SHA-256 of each file, computed on all cores; an interrupt drops the remaining files."""
    parts = [files[start : start + _PART] for start in range(0, len(files), _PART)]
    pool = ThreadPoolExecutor()
    try:
        done = pool.map(lambda part: [_digest(file) for file in part], parts)
        return [d for part in track(done, "reading", len(files), step=_PART) for d in part]
    finally:
        pool.shutdown(cancel_futures=True)


def _digest(file: Path) -> str:
    try:
        return sha256(file)
    except OSError as error:
        raise PipelineError(
            f"cannot be read: {error.strerror}", where=str(file), fix="repair or remove it"
        ) from None


def _relative(file: Path, folder: Path) -> str:
    name = file.relative_to(folder).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise PipelineError(
            f"a file's name is not valid UTF-8: {name!a}", where=str(folder), fix="rename it"
        ) from None
    return name


class Folder:
    """`source: folder`: one folder per class. The images are read where they are."""

    def check(self, data: Data) -> None:
        if not data.folder.is_dir():
            raise PipelineError(
                "there is no such folder",
                where=f"data.folder: {data.folder}",
                fix="set it to the folder that contains one folder per class",
            )

    def fetch(self, data: Data, folder: Path) -> None:
        self.check(data)
        index_folder(data.folder).write(folder / INDEX)

    def samples(self, data: Data, folder: Path) -> Samples:  # noqa: ARG002 - the index has it
        index = FolderIndex.read(folder / INDEX)
        ignored = f"{len(index.ignored)} files are not used: {', '.join(index.ignored[:20])}"
        return Samples(
            source=f"folder {index.folder}",
            licence="the user's own",
            classes=index.classes,
            labels=np.array([file.label for file in index.files], np.int64),
            splits=np.array([file.split for file in index.files]),
            warnings=(ignored,) if index.ignored else (),
            files=tuple(file.path for file in index.files),
        )

    def reader(self, data: Data, folder: Path) -> Read:  # noqa: ARG002 - the index has it
        index = FolderIndex.read(folder / INDEX)
        root = Path(index.folder)
        paths = [root / file.path for file in index.files]
        return lambda i: paths[i]


FOLDER = Folder()
