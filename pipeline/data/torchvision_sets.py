"""Classification sets of torchvision.datasets by name, downloaded and verified."""

from __future__ import annotations

import contextlib
import difflib
import gzip
import hashlib
import inspect
import io
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.core.patches import import_torchvision
from pipeline.data.params import Data
from pipeline.data.records import Split
from pipeline.data.sources import Read, Samples

DEBIAN_PACKAGES = {"FashionMNIST": "dataset-fashion-mnist"}
LICENCES = {"FashionMNIST": "MIT, Zalando SE"}
UNPACKED = {
    "t10k-images-idx3-ubyte.gz": (
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
    "train-images-idx3-ubyte.gz": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "train-labels-idx1-ubyte.gz": (
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
}
"""SHA-256 of the content of archives. Debian has compressed the published files anew, so that
the MD5s which torchvision knows fit its content but not its archives."""
_TIMEOUT_SECONDS = 15
_SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "trainval"),
    "val": ("val", "valid"),
    "test": ("test",),
}


def fetch_set(data: Data, root: Path) -> None:
    """Bring the files of the set `data.name` into `root`; torchvision checks their digests.

    Archives come from `data.folder` if they lie there, else from the set's own mirrors, else
    from Debian's package of the set. Raises `PipelineError` with all that was tried.
    """
    kind = _dataset_class(data.name)
    at_hand = _copy_archives(kind, data.folder, root)
    tried: list[str] = [f"{data.folder}: {at_hand} files"] if at_hand else []
    if at_hand:  # some sets refuse to be asked for a download at all, as they have none any more
        with contextlib.suppress(PipelineError):
            open_set(data, root)
            return
    try:
        return _download(data, root)
    except _UnavailableError as error:
        tried.append(f"torchvision's mirrors: {error}")
    if package := DEBIAN_PACKAGES.get(data.name):
        try:
            _from_debian(package, kind, root)
            return _download(data, root)
        except _UnavailableError as error:
            tried.append(f"Debian's package {package}: {error}")
    raise PipelineError(
        "the set could not be fetched:\n    " + "\n    ".join(tried),
        where=f"data.name: {data.name}",
        fix="put the set's archives into a folder and name it in `data.folder`",
    )


def open_set(data: Data, root: Path) -> dict[Split, Any]:
    """The set's own splits, read from `root`, nothing downloaded; `train` is always there.

    Raises `PipelineError` if `fetch_set` has not brought this very set there.
    """
    try:
        return {split: make() for split, make in _makers(data, root, download=False).items()}
    except (OSError, RuntimeError) as error:
        raise PipelineError(
            f"{data.name} is not there, or not whole: {error}",
            where=str(root),
            fix="run `dvc repro`, or `python -m stages.fetch` by hand",
        ) from None


class _UnavailableError(Exception):
    """One way to the files failed; the next may not."""


def _dataset_class(name: str) -> Any:
    import_torchvision()
    from torchvision import datasets

    kind = getattr(datasets, name, None)
    if not inspect.isclass(kind) or not issubclass(kind, datasets.VisionDataset):
        close = difflib.get_close_matches(name, datasets.__all__, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise PipelineError(f"torchvision has no set `{name}`{hint}", where="data.name")
    return kind


def _makers(data: Data, root: Path, *, download: bool) -> dict[Split, Any]:
    """What opens each split. Sets say `train=...`, `split=...` or bring no split at all."""
    kind = _dataset_class(data.name)
    known = _parameters(kind)
    common: dict[str, Any] = {"root": str(root), **data.options}
    if "download" in known:
        common["download"] = download
    unknown = sorted(data.options.keys() - set(known))
    if unknown:
        raise PipelineError(
            f"{data.name} takes no {', '.join(unknown)}; it knows {', '.join(known)}",
            where="data.options",
        )

    def maker(**arguments: Any) -> Any:
        accepted = {key: value for key, value in common.items() if key in known}
        return lambda: _construct(kind, accepted | arguments)

    if "train" in known and "train" not in data.options:
        return {"train": maker(train=True), "test": maker(train=False)}
    if "split" in known and "split" not in data.options:
        offered = _split_values(kind)
        chosen = {
            split: next((name for name in names if name in offered), None)
            for split, names in _SPLITS.items()
        }
        if chosen["train"] is None:
            raise PipelineError(
                f"its splits are {', '.join(offered)}, none is train",
                where=f"data.name: {data.name}",
                fix="choose one of them: `data.options: {split: ...}`",
            )
        return {split: maker(split=name) for split, name in chosen.items() if name}
    return {"train": maker()}


def _construct(kind: Any, arguments: dict[str, Any]) -> Any:
    try:
        return kind(**arguments)
    except ModuleNotFoundError as error:
        raise PipelineError(
            f"{kind.__name__} needs the package {error.name}",
            where="data.name",
            fix=f"pip install {error.name}",
        ) from None
    except (TypeError, ValueError) as error:
        raise PipelineError(
            f"{kind.__name__} refuses its arguments: {error}",
            where=f"data.name: {kind.__name__}, data.options",
            fix="give it there what its documentation asks for",
        ) from None


def _parameters(kind: Any) -> list[str]:
    """Arguments of a set's constructor, those of its bases included where it hands them on."""
    names: list[str] = []
    for base in kind.__mro__:
        parameters = inspect.signature(base.__init__).parameters.values()
        names += [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "self"]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def _split_values(kind: Any) -> list[str]:
    """Names of splits that a set accepts: string literals in its source, its bases' included.

    torchvision does not list them anywhere else in the same way for all sets.
    """
    source = "".join(inspect.getsource(base) for base in kind.__mro__ if base is not object)
    names = [name for names in _SPLITS.values() for name in names]
    return [name for name in names if f'"{name}"' in source]


def _download(data: Data, root: Path) -> None:
    said = io.StringIO()
    try:
        with _timeout(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            for make in _makers(data, root, download=True).values():
                make()
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise _UnavailableError(" ".join(str(error).split())) from None


@contextlib.contextmanager
def _timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _archive_folder(kind: Any, root: Path) -> Path:
    """Where torchvision looks for archives before it downloads them."""
    from torchvision import datasets

    return root / kind.__name__ / "raw" if issubclass(kind, datasets.MNIST) else root


def _copy_archives(kind: Any, folder: Path, root: Path) -> int:
    """Copy what the user has, laid out as torchvision does or flat; check known digests."""
    if not folder.is_dir():
        return 0
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "README.md" and not file.name.startswith(".")
    ]
    for file in files:
        inner = file.relative_to(folder)
        target = root / inner if len(inner.parts) > 1 else _archive_folder(kind, root) / inner
        _copy_verified(kind, file, target)
    return len(files)


def _copy_verified(kind: Any, file: Path, target: Path) -> None:
    """Copy an archive, or its content where only the compression is not the published one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    published = _published_digests(kind, file.name)
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "md5").hexdigest()
    if not published or found in published:
        shutil.copyfile(file, target)
        return
    unpacked = b""
    if file.name in UNPACKED:
        with contextlib.suppress(OSError, EOFError, zlib.error):
            unpacked = gzip.decompress(file.read_bytes())
    if hashlib.sha256(unpacked).hexdigest() != UNPACKED.get(file.name):
        raise PipelineError(
            f"not the archive that {kind.__name__} was published with: its digest differs",
            where=str(file),
            fix="remove it, or replace it with the original",
        )
    target.with_suffix("").write_bytes(unpacked)


def _published_digests(kind: Any, name: str) -> set[str]:
    """MD5s that an archive of this name may have; empty where torchvision gives none.

    torchvision keeps them in another way for each set, but always as literals of its module.
    """
    if resources := dict(getattr(kind, "resources", [])):
        return {resources[name]} if name in resources else set()
    source = inspect.getsource(sys.modules[kind.__module__])
    if Path(name).suffix not in (".gz", ".tgz", ".tar", ".zip", ".bz2", ".mat"):
        return set()
    return set(re.findall(r"\b[0-9a-f]{32}\b", source)) if name in source else set()


def _from_debian(package: str, kind: Any, root: Path) -> None:
    """Unpack a Debian package's archives; apt checks its signature, we the content.

    No root is needed. Where the system's package lists are empty, apt gets lists of its own.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # apt's download user, if there is one, must get in
        lists = folder / "lists"
        private = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={folder / 'cache'}"]
        (lists / "partial").mkdir(parents=True)
        (folder / "cache" / "archives" / "partial").mkdir(parents=True)
        try:
            _command(["apt-get", "-q", "download", package], folder)
        except _UnavailableError:
            _command(["apt-get", "-q", *private, "update"], folder)
            _command(["apt-get", "-q", *private, "download", package], folder)
        (archive,) = folder.glob("*.deb")
        _command(["dpkg-deb", "-x", archive.name, "content"], folder)
        for file in (folder / "content" / "usr" / "share" / "datasets").rglob("*.gz"):
            _copy_verified(kind, file, _archive_folder(kind, root) / file.name)


def _command(words: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    except FileNotFoundError:
        raise _UnavailableError(f"there is no {words[0]} here") from None
    except subprocess.TimeoutExpired:
        raise _UnavailableError(f"{words[0]} took more than 300 s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise _UnavailableError(f"{words[0]}: {lines[-1]}")


class TorchvisionSets:
    """`source: torchvision`: a classification set of torchvision.datasets by its name."""

    def check(self, data: Data) -> None:
        _dataset_class(data.name)

    def fetch(self, data: Data, folder: Path) -> None:
        fetch_set(data, folder)

    def samples(self, data: Data, folder: Path) -> Samples:
        sets = open_set(data, folder)
        labels = np.concatenate([_targets(part, data.name) for part in sets.values()])
        names = _class_names(next(iter(sets.values())), int(labels.max()) + 1)
        # Some sets name classes that no image has (EMNIST's letters start with `N/A`).
        present, labels = np.unique(labels, return_inverse=True)
        absent = [name for label, name in enumerate(names) if label not in set(present.tolist())]
        left_out = f"{len(absent)} classes have no image and are left out: {', '.join(absent[:20])}"
        splits: list[Split] = [split for split, part in sets.items() for _ in range(len(part))]
        return Samples(
            source=f"torchvision {data.name}",
            licence=LICENCES.get(data.name, "see the source"),
            classes=tuple(names[label] for label in present),
            labels=labels.astype(np.int64),
            splits=np.array(splits),
            warnings=(left_out,) if absent else (),
        )

    def reader(self, data: Data, folder: Path) -> Read:
        sets = list(open_set(data, folder).values())
        starts = np.cumsum([0, *map(len, sets)])

        def read(i: int) -> Image.Image:
            which = int(np.searchsorted(starts, i, side="right")) - 1
            image, _ = sets[which][i - int(starts[which])]
            if not isinstance(image, Image.Image):
                raise ValueError(f"gives {type(image).__name__}, not images")
            return image

        return read


def _class_names(part: Any, count: int) -> list[str]:
    """A name per label, each one different; the number where the set brings no names."""
    named = getattr(part, "classes", None) or getattr(part, "categories", None) or ()
    if len(named) < count:
        named = range(count)
    # ImageNet's names are tuples of synonyms, and two of its classes are called `crane`.
    names = [", ".join(name) if isinstance(name, tuple) else str(name) for name in named]
    return [f"{n} ({i})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def _targets(part: Any, name: str) -> NDArray[np.int64]:
    """Labels of a torchvision set, without decoding its images where it lists them."""
    for attribute in ("targets", "labels", "_labels", "y"):
        listed = getattr(part, attribute, None)
        if listed is not None and len(listed) == len(part):
            break
    else:
        listed = [part[i][1] for i in range(len(part))]
    labels = np.asarray(listed)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise PipelineError("its targets are not one class per image", where=f"data.name: {name}")
    if len(labels) == 0 or labels.min() < 0:
        raise PipelineError("it has images without a class, or none", where=f"data.name: {name}")
    return labels.astype(np.int64)


TORCHVISION = TorchvisionSets()
