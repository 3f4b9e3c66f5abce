"""`python -m pipeline weights ARCH`: which weights timm has, and whether they are within reach."""

from __future__ import annotations

import urllib.error
import urllib.request

from huggingface_hub import constants, try_to_load_from_cache
from rich.table import Table

from pipeline.core.errors import PipelineError
from pipeline.core.params import nearest
from pipeline.core.patches import import_timm

_FILES = ("model.safetensors", "pytorch_model.bin")
_SECONDS = 5.0


def weights_table(arch: str) -> Table:
    """A row for each of timm's weights of an architecture.

    Args:
        arch: a timm name, with or without a tag behind a dot.

    Raises:
        PipelineError: for a name that timm does not know.
    """
    timm = import_timm()
    name = arch.partition(".")[0]
    if not timm.is_model(name):
        raise PipelineError(
            f"timm {timm.__version__} has no network `{arch}`{nearest(name, timm.list_models())}"
        )
    tags = timm.list_pretrained(f"{name}.*")
    online = bool(tags) and _hub_answers()
    title = f"timm {timm.__version__}: {len(tags)} weights for {name}"
    table = Table(title=title, title_justify="left")
    for column in ("arch", "classes", "pixels", "mean", "std", "within reach"):
        table.add_column(column, overflow="fold")
    for tag in tags:
        config = timm.get_pretrained_cfg(tag)
        mean, std = (
            " ".join(f"{255 * value:.0f}" for value in values)
            for values in (config.mean, config.std)
        )
        row = (tag, str(config.num_classes), str(config.input_size[1]), mean, std)
        table.add_row(*row, _reach(config.hf_hub_id, online=online))
    return table


def _reach(hub_id: str | None, *, online: bool) -> str:
    if hub_id is None:
        return "not on the hub"
    if any(isinstance(try_to_load_from_cache(hub_id, file), str) for file in _FILES):
        return "yes, in the cache"
    return "yes, on the hub" if online else "no: no answer"


def _hub_answers() -> bool:
    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # it answers, if not with its front page
    except OSError:
        return False
