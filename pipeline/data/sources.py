"""Stage `fetch`: the images as their source gives them, verified."""

from __future__ import annotations

from pathlib import Path

from pipeline.contracts import RAW
from pipeline.data.folder import index_folder
from pipeline.files import whole_folder
from pipeline.params import Data


def fetch(data: Data, out: Path = RAW) -> None:
    """Write data/raw/: a torchvision set's files, or the index of the user's own folder.

    Raises `PipelineError` for a set or folder that cannot be had or used.
    """
    with whole_folder(out) as scratch:
        if data.source == "folder":
            index_folder(data.folder).write(scratch / "index.json")
        else:
            # Here, as it brings torch, which a folder of images has no need of.
            from pipeline.data.torchvision_sets import fetch_set

            fetch_set(data, scratch)
