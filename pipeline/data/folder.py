"""The user's own images: one folder per class, with or without splits above them."""

from __future__ import annotations

import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.core.progress import track
from pipeline.core.records import Record
from pipeline.data.params import Data
from pipeline.data.records import Split
from pipeline.data.sources import Read, Samples, check_class_names

SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""What a split's folder may be called, in any case."""

_LIKE_A_SPLIT = re.compile(r"(?i)(^|[^a-z])(train|test|valid|eval|(val|dev)([^a-z]|$))")
"""Names such as `training_set` and `test1`."""

SYSTEM_NAMES = (
    "__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin",
    "system volume information", "lost+found",
)  # fmt: skip
"""Folders of file systems and file servers, in lower case: thumbnails, deleted files."""

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
    skipped: tuple[str, ...]
    """Hidden files and folders, and those of file systems."""
    layout: str
    """How the folders were taken, as one sentence."""


@dataclass
class Contents:
    """What a folder holds; `files` is all that is no folder."""

    folders: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)


def index_folder(folder: Path) -> FolderIndex:
    """List every image of an ImageFolder with its class and split.

    Either all top-level folders are splits, by the names in `SPLIT_NAMES`, or all are classes, and
    all files are `train`. An image may be a symbolic link, and so may `folder` itself.

    Raises:
        PipelineError: for splits beside other folders, without `train` or named twice, a single
            class, a class without images, splits of different classes, class names that are the
            same to some file systems, a folder that is a symbolic link, and a file or folder that
            cannot be read or whose name is not UTF-8.
    """
    top = list_folder(folder)
    roots = _roots(folder, top.folders)
    inside = {root: top if root == folder else list_folder(root) for root in roots}
    classes = _classes({root: its.folders for root, its in inside.items()}, roots)
    suffixes = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    above = [top, *(its for root, its in inside.items() if root != folder)]
    ignored = [file for its in above for file in its.files if file.suffix.lower() in suffixes]
    skipped = [path for its in above for path in its.skipped]
    found: list[tuple[Path, Split, int]] = []
    insides = []
    for root, split in roots.items():
        for label, name in enumerate(classes):
            its = list_folder(root / name, below=True)
            images = _images(its.files, suffixes, root / name)
            ignored += sorted(set(its.files) - set(images))
            skipped += its.skipped
            found += [(file, split, label) for file in images]
            insides.append([path.name for path in its.folders if path.parent == root / name])
    _check_order(insides, folder)
    digests = file_digests([file for file, _, _ in found])
    entries = tuple(
        IndexedFile(path=relative_name(file, folder), split=split, label=label, sha256=digest)
        for (file, split, label), digest in zip(found, digests, strict=True)
    )
    return FolderIndex(
        folder=str(folder),
        classes=classes,
        files=entries,
        ignored=tuple(relative_name(file, folder) for file in ignored),
        skipped=tuple(relative_name(path, folder) for path in skipped),
        layout=_layout(roots, folder),
    )


def _images(files: list[Path], suffixes: set[str], folder: Path) -> list[Path]:
    # A broken symbolic link is no file.
    images = [file for file in files if file.suffix.lower() in suffixes and file.is_file()]
    if not images:
        raise PipelineError(
            f"the class `{folder.name}` has no image",
            where=str(folder),
            fix="add images, or remove the folder",
        )
    return images


def _check_order(insides: list[list[str]], folder: Path) -> None:
    """Refuse splits below the classes; `insides` are the names of the folders in each class."""
    if all(
        inside and {name.lower() for name in inside} <= SPLIT_NAMES.keys() for inside in insides
    ):
        raise PipelineError(
            "every class folder holds folders of splits, which would be mixed",
            where=str(folder),
            fix="put the splits above the classes: `train/CLASS`, `val/CLASS`, `test/CLASS`",
        )


def list_folder(folder: Path, *, below: bool = False) -> Contents:
    """The entries of a folder, sorted; with `below`, also those of all folders in it.

    Raises:
        PipelineError: for a folder that cannot be read, or one in it that is a symbolic link.
    """
    contents = Contents()
    unread = [folder]
    while unread:
        here = unread.pop()
        try:
            for path in here.iterdir():
                if path.name.startswith(".") or path.name.lower() in SYSTEM_NAMES:
                    contents.skipped.append(path)
                elif not path.is_dir():
                    contents.files.append(path)
                elif path.is_symlink():
                    raise PipelineError(
                        "a folder that is a symbolic link: DVC does not follow it, so that new "
                        "and changed images in it would go unnoticed",
                        where=str(path),
                        fix="put the folder itself there (only `data.folder` as a whole and "
                        "single images may be links)",
                    )
                else:
                    contents.folders.append(path)
                    unread += [path] if below else []
        except OSError as error:
            raise PipelineError(
                f"the folder cannot be read: {error.strerror}",
                where=str(here),
                fix="make it readable, or move it elsewhere",
            ) from None
    for paths in (contents.folders, contents.files, contents.skipped):
        paths.sort()
    return contents


def _roots(folder: Path, tops: list[Path]) -> dict[Path, Split]:
    """The folders that contain class folders, each with its split."""
    splits = {
        path: SPLIT_NAMES[path.name.lower()] for path in tops if path.name.lower() in SPLIT_NAMES
    }
    if not splits and not (tops and all(_LIKE_A_SPLIT.search(path.name) for path in tops)):
        return {folder: "train"}
    found = list(splits.values())
    if len(splits) == len(tops) and "train" in found and len(set(found)) == len(found):
        return splits
    more = f" and {len(tops) - 10} more" if len(tops) > 10 else ""
    raise PipelineError(
        f"found {', '.join(path.name for path in tops[:10])}{more}: splits or classes?",
        where=str(folder),
        fix="keep only `train` there and, where you have them, one `val` and one `test`; "
        "if they are classes, move all of them into a folder `train`",
    )


def _layout(roots: dict[Path, Split], folder: Path) -> str:
    cut = [split for split in ("val", "test") if split not in roots.values()]
    later = f"; {' and '.join(cut)} will be cut from train" if cut else ""
    if folder in roots:
        return f"every folder is a class{later}"
    named = ", ".join(f"`{root.name}` is {split}" for root, split in roots.items())
    return f"the folders are splits: {named}{later}"


def _classes(folders: dict[Path, list[Path]], roots: dict[Path, Split]) -> tuple[str, ...]:
    """The names of the classes, which are the same in every root."""
    names = {root: tuple(path.name for path in its) for root, its in folders.items()}
    train_root = next(root for root, split in roots.items() if split == "train")
    train = names[train_root]
    if len(train) < 2:
        raise PipelineError(
            f"found {len(train)} class folders, a classifier needs at least two",
            where=str(train_root),
            fix="put every class's images into a folder of the class's name",
        )
    check_class_names(train, str(train_root))
    written: dict[str, str] = {}
    for name in (name for found in names.values() for name in found):
        same = written.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if same != name:
            raise PipelineError(
                f"the class folders {same!a} and {name!a} differ only in case or in the Unicode "
                "form of their letters",
                where=", ".join(map(str, roots)),
                fix="give them one name, or names that differ",
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


def file_digests(files: list[Path]) -> list[str]:
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


def relative_name(file: Path, folder: Path) -> str:
    """The path of `file` below `folder`; `PipelineError` unless it is UTF-8."""
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
        unused = {
            "files are not used": index.ignored,
            "hidden or system files and folders are skipped": index.skipped,
        }
        return Samples(
            source=f"folder {index.folder}",
            licence="the user's own",
            classes=index.classes,
            labels=np.array([file.label for file in index.files], np.int64),
            splits=np.array([file.split for file in index.files]),
            warnings=tuple(
                f"{len(names)} {what}: {', '.join(names[:20])}"
                for what, names in unused.items()
                if names
            ),
            layout=index.layout,
            files=tuple(file.path for file in index.files),
        )

    def reader(self, data: Data, folder: Path) -> Read:  # noqa: ARG002 - the index has it
        index = FolderIndex.read(folder / INDEX)
        root = Path(index.folder)
        paths = [root / file.path for file in index.files]
        return lambda i: paths[i]


FOLDER = Folder()
