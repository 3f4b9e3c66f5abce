"""The modules of a network that feature losses can tap, with their shapes."""

from __future__ import annotations

import torch
from rich import box
from rich.table import Table

from pipeline.cli.params import load_params
from pipeline.core.params import PARAMS_FILE
from pipeline.data.records import PACKED, Manifest
from pipeline.distill.taps import list_taps
from pipeline.networks.build import build_network
from pipeline.networks.params import Network

_SIZE, _CHANNELS, _CLASSES = 224, 3, 10


def taps_table(name: str, size: int | None, *, every: bool) -> Table:
    """Module paths, types and shapes [F, H, W], found by one forward pass.

    Args:
        name: a student or teacher of params.yaml, else a timm name.
        size: height and width of the images; null: those of the packed data, if there are any.
        every: list every module, not only the outermost ones of blocks and stages.

    Raises:
        PipelineError: for an unknown name.
    """
    network, own = _known(name)
    manifest = PACKED / "manifest.json"
    channels, found = _CHANNELS, _SIZE
    if manifest.exists():
        data = Manifest.read(manifest)
        channels, found = data.channels, data.image_size
    size = size or own or found
    model = build_network(network, classes=_CLASSES, channels=channels, image_size=size)
    modules = list_taps(model, torch.zeros(1, channels, size, size))
    title = f"{name}: {network.arch} on {size} x {size} x {channels}"
    shown = Table("tap", "module", "F, H, W", title=title, box=box.SIMPLE_HEAD)
    marks = {path: f" ({tap})" for tap, path in network.taps.items()}
    for module in modules:
        if every or module.path in marks or module.path.count(".") <= 1:
            shape = " x ".join(map(str, module.shape))
            shown.add_row(module.path + marks.get(module.path, ""), module.kind, shape)
    return shown


def _known(name: str) -> tuple[Network, int | None]:
    """The network of that name, and the input size that a teacher may set."""
    if PARAMS_FILE.exists():
        params = load_params()
        if name in params.students.zoo:
            return params.students.zoo[name], None
        if name in params.teachers.zoo:
            teacher = params.teachers.zoo[name]
            own = teacher.input_size
            return teacher.network, None if own == "auto" else own
    return Network(arch=name), None
