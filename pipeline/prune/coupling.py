"""Which channels of a network have to go together, and their removal, by Torch-Pruning.

A channel that a layer no longer makes must not be expected by the layers that read it, nor by the
batch norms, depthwise convolutions and residual sums in between. The library follows these
dependencies through the graph that autograd records (DepGraph, arXiv 2301.12900).
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.core.patches import import_timm

Units = Mapping[str, Sequence[int]]
"""Units by the root of their coupling."""


@dataclass(frozen=True)
class Reader:
    """How a convolution or linear layer reads the channels of a coupling."""

    layer: str
    channels: tuple[int, ...]
    """Of its input."""
    units: tuple[int, ...]
    """The unit that each of them belongs to."""


@dataclass(frozen=True)
class Coupling:
    """Layers whose channels have to go together; unit i is what is removed as one."""

    root: str
    """Path of the layer whose output channels the units are counted by."""
    units: int
    ways: int
    """Output channels of the root in a unit: one in each group of a grouped convolution."""
    makes: dict[str, float]
    """Output channels in a unit, by convolution or linear layer."""
    reads: dict[str, float]
    """Input channels in a unit, by layer; a depthwise convolution is in `makes` alone."""
    readers: tuple[Reader, ...]

    def channels(self, units: Sequence[int]) -> list[int]:
        """The root's output channels in these units: unit i has channel i of every group."""
        return [way * self.units + unit for way in range(self.ways) for unit in sorted(units)]


def library() -> ModuleType:
    """Torch-Pruning; `PipelineError` where it is not installed."""
    import_timm()  # torchvision, which the library may import, has to be imported this way
    try:
        import torch_pruning
    except ImportError:
        raise PipelineError(
            "the package torch-pruning is not installed",
            where="prune.enabled",
            fix="`pip install -e '.[prune]'`, or leave `prune.enabled` empty",
        ) from None
    return torch_pruning  # type: ignore[no-any-return]


def couplings(network: nn.Module, image: torch.Tensor) -> tuple[Coupling, ...]:
    """All couplings of a network but those that reach its logits.

    Args:
        network: takes `image`; is not changed.
        image: float [1, C, H, W].

    Raises:
        PipelineError: where the library is missing, or cannot follow the network.
    """
    graph = _graph(network, image)
    found = []
    for group in graph.get_all_groups():
        ends = [dep.target for dep, _ in group if not dep.target.outputs and _makes(graph, dep)]
        if not ends:
            found.append(_coupling(graph, group))
    return tuple(found)


def remove(network: nn.Module, image: torch.Tensor, cut: Sequence[Coupling], units: Units) -> None:
    """Remove units from a network.

    Args:
        network: is changed.
        image: as for `couplings`.
        cut: the couplings of this network.
        units: what to remove of them, by root; each keeps at least one.
    """
    graph = _graph(network, image)
    for one in cut:
        if units.get(one.root):
            root = network.get_submodule(one.root)
            makes = graph.get_pruner_of_module(root).prune_out_channels
            graph.get_pruning_group(root, makes, one.channels(units[one.root])).prune()


def silence(network: nn.Module, image: torch.Tensor, cut: Sequence[Coupling], units: Units) -> None:
    """Set to zero what `remove` would remove, so that both networks give the same logits.

    Args:
        network: is changed.
        image: as for `couplings`.
        cut: the couplings of this network.
        units: of them, by root.
    """
    graph = _graph(network, image)
    for one in cut:
        if not units.get(one.root):
            continue
        root = network.get_submodule(one.root)
        makes = graph.get_pruner_of_module(root).prune_out_channels
        for dep, channels in graph.get_pruning_group(root, makes, one.channels(units[one.root])):
            if not _makes(graph, dep):
                continue
            its, where = dep.target.module, torch.tensor(channels)
            if isinstance(its, nn.Parameter):  # of no layer, such as a scale
                its.data.index_fill_(dep.target.pruning_dim, where, 0)
                continue
            for leaf in ("weight", "bias"):
                tensor = getattr(its, leaf, None)
                if isinstance(tensor, nn.Parameter):
                    tensor.data.index_fill_(0, where, 0)


def _graph(network: nn.Module, image: torch.Tensor) -> Any:
    training = network.training
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # about parameters outside layers, which are tested
        graph = library().DependencyGraph().build_dependency(network, image, verbose=False)
    network.train(training)
    return graph


def _makes(graph: Any, dep: Any) -> bool:
    """Whether an item of a group takes output channels."""
    return bool(graph.is_out_channel_pruning_fn(dep.handler))


def _coupling(graph: Any, group: Any) -> Coupling:
    root = graph._module2name[group[0].dep.target.module]
    channels = len(group[0].idxs)
    layers = {
        dep.target.module
        for dep, _ in group
        if isinstance(dep.target.module, nn.Conv2d | nn.GroupNorm)
    }
    ways = math.lcm(*(_groups(layer) for layer in layers))
    ways = ways if channels % ways == 0 else channels
    units = channels // ways
    makes: Counter[str] = Counter()
    reads: Counter[str] = Counter()
    readers = []
    for item in group:
        layer, path = item.dep.target.module, graph._module2name.get(item.dep.target.module)
        if path is None or not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        if _depthwise(layer) or _makes(graph, item.dep):
            makes[path] += len(item.idxs)
            continue
        reads[path] += len(item.idxs)
        pairs = zip(item.idxs, item.root_idxs, strict=True)
        known = [(index, own % units) for index, own in pairs if own is not None]
        readers.append(Reader(path, *(tuple(part) for part in zip(*known, strict=True))))
    return Coupling(
        root, units, ways,
        {path: count / units for path, count in makes.items()},
        {path: count / units for path, count in reads.items()},
        tuple(readers),
    )  # fmt: skip


def _groups(layer: nn.Module) -> int:
    """Of a grouped convolution or group norm; 1 of what treats all channels alike."""
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    assert isinstance(layer, nn.Conv2d)
    return 1 if _depthwise(layer) else layer.groups


def _depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.out_channels > 1
