"""Classification sets of torchvision.datasets by name, downloaded and verified."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import socket
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.core.patches import import_torchvision, torchvision_unpacks_by
from pipeline.data import archives
from pipeline.data.archives import UnavailableError
from pipeline.data.known_sets import KNOWN_SETS
from pipeline.data.params import Data
from pipeline.data.records import Split
from pipeline.data.sources import Read, Samples

LICENCES = {"FashionMNIST": "MIT, Zalando SE"}
_TIMEOUT_SECONDS = 15


class TorchvisionSets:
    """`source: torchvision`: a classification set of torchvision.datasets by its name."""

    def check(self, data: Data) -> None:
        _dataset_class(data.name)

    def fetch(self, data: Data, folder: Path) -> None:
        """Archives come from `data.folder`, else from the set's mirrors, else from Debian.

        torchvision checks published digests. The error names everything that was tried.
        """
        self.check(data)
        at_hand = archives.copy_archives(data.name, data.folder, folder)
        tried: list[str] = [f"{data.folder}: {at_hand} files"] if at_hand else []
        if at_hand:  # some sets refuse `download=True`: they have no mirror any more
            with contextlib.suppress(PipelineError):
                open_set(data, folder)
                return
        try:
            return _download(data, folder)
        except UnavailableError as error:
            tried.append(f"torchvision's mirrors: {error}")
        if package := archives.DEBIAN_PACKAGES.get(data.name):
            try:
                archives.copy_from_debian(package, data.name, folder)
                return _download(data, folder)
            except UnavailableError as error:
                tried.append(f"Debian's package {package}: {error}")
        raise PipelineError(
            "the set could not be fetched:\n    " + "\n    ".join(tried),
            where=f"data.name: {data.name}",
            fix="put the set's archives into a folder and name it in `data.folder`",
        )

    def samples(self, data: Data, folder: Path) -> Samples:
        sets = open_set(data, folder)
        labels = np.concatenate([_targets(part, data.name) for part in sets.values()])
        names = _class_names(next(iter(sets.values())), int(labels.max()) + 1)
        # Some sets have classes without images (EMNIST's letters start with `N/A`).
        present, labels = np.unique(labels, return_inverse=True)
        absent = [name for label, name in enumerate(names) if label not in set(present.tolist())]
        warnings = _unverified(data.name)
        if absent:
            shown = ", ".join(absent[:20])
            warnings.append(f"{len(absent)} classes have no image and are left out: {shown}")
        splits: list[Split] = [split for split, part in sets.items() for _ in range(len(part))]
        return Samples(
            source=f"torchvision {data.name}",
            licence=LICENCES.get(data.name, "see the source"),
            classes=tuple(names[label] for label in present),
            labels=labels.astype(np.int64),
            splits=np.array(splits),
            warnings=tuple(warnings),
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


def open_set(data: Data, root: Path) -> dict[Split, Any]:
    """The set's own splits, read from `root` without a download; `train` is always there.

    Raises:
        PipelineError: where `root` does not hold this very set.
    """
    try:
        return {split: make() for split, make in _makers(data, root, download=False).items()}
    except (OSError, RuntimeError) as error:
        raise PipelineError(
            f"{data.name} is missing or incomplete: {error}",
            where=str(root),
            fix="run `dvc repro`, or `python -m stages.fetch` by hand",
        ) from None


def _dataset_class(name: str) -> Any:
    if name not in KNOWN_SETS:
        close = difflib.get_close_matches(name, KNOWN_SETS, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise PipelineError(
            f"`{name}` is no classification set of torchvision that is supported{hint}",
            where="data.name",
            fix=f"choose one of {', '.join(sorted(KNOWN_SETS))}",
        )
    import_torchvision()
    from torchvision import datasets

    return getattr(datasets, name)


def _unverified(name: str) -> list[str]:
    return [
        f"torchvision knows no digest of {archive}: its content is not verified"
        for archive, digest in KNOWN_SETS[name].archives.items()
        if digest is None
    ]


def _makers(data: Data, root: Path, *, download: bool) -> dict[Split, Any]:
    """Functions that open each split; one alone where `data.options` choose it."""
    kind = _dataset_class(data.name)
    known = _parameters(kind)
    unknown = sorted(data.options.keys() - set(known))
    if unknown:
        raise PipelineError(
            f"{data.name} takes no {', '.join(unknown)}; it knows {', '.join(known)}",
            where="data.options",
        )
    common: dict[str, Any] = {"root": str(root), "download": download, **data.options}
    accepted = {key: value for key, value in common.items() if key in known}
    splits = KNOWN_SETS[data.name].splits
    if any(key in data.options for key in splits["train"]):
        splits = {"train": {}}
    return {
        split: partial(_construct, kind, accepted | dict(arguments))
        for split, arguments in splits.items()
    }


def _construct(kind: Any, arguments: dict[str, Any]) -> Any:
    try:
        with torchvision_unpacks_by(archives.unpack):
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
            fix="set `data.options` as its documentation says",
        ) from None


def _parameters(kind: Any) -> list[str]:
    """Arguments of a set's constructor, with those of its bases where it passes them on."""
    names: list[str] = []
    for base in kind.__mro__:
        parameters = inspect.signature(base.__init__).parameters.values()
        names += [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "self"]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def _download(data: Data, root: Path) -> None:
    said = io.StringIO()  # keeps torchvision's progress bars off the terminal
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            for make in _makers(data, root, download=True).values():
                make()
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise UnavailableError(" ".join(str(error).split())) from None
    finally:
        socket.setdefaulttimeout(before)


def _class_names(part: Any, count: int) -> list[str]:
    """A unique name per label; its number where the set has no names."""
    named = getattr(part, "classes", None) or getattr(part, "categories", None) or ()
    if len(named) < count:
        named = range(count)
    # ImageNet's names are tuples of synonyms, and two of its classes are called `crane`.
    names = [", ".join(name) if isinstance(name, tuple) else str(name) for name in named]
    return [f"{n} ({i})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def _targets(part: Any, name: str) -> NDArray[np.int64]:
    """Labels of a torchvision set; images are decoded only where the set does not list labels."""
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
