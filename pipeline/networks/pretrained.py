"""Weights that a network starts from: timm's own, or a file of any origin."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.core.patches import import_timm
from pipeline.networks.params import Network
from pipeline.networks.pixels import pretrained_normalisation
from pipeline.networks.records import CARD, ModelCard, Normalisation, StartedFrom

ENOUGH = 0.9
"""A smaller share of the backbone's tensors that find their place is an error."""

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "weights")
"""Keys under which training scripts store a state dict, the better one first."""

_PREFIXES = ("module.", "_orig_mod.", "model.")
"""That wrappers put in front of every name."""

_COUNTER = "num_batches_tracked"
"""Batches that a batch norm has seen: not every library stores them."""


def start_from(
    model: nn.Module, network: Network, checkpoints: Path, classes: tuple[str, ...], channels: int
) -> tuple[Normalisation, StartedFrom] | None:
    """Fill `model`, as `build_network` made it, with the weights that `network` names.

    The classifier keeps its random weights where the file's has another number of classes or, by
    the card.json beside it, other classes.

    Args:
        model: is changed.
        network: names the weights.
        checkpoints: the folder of weights files.
        classes: of the data.
        channels: of the images.

    Returns:
        The normalisation that the weights need and what was loaded; None for `weights: none`.

    Raises:
        PipelineError: for a file that is missing, damaged, pickled code, or of another network, and
            where the normalisation is not known.
    """
    if network.weights == "none":
        return None
    file = network.weights_file(checkpoints)
    if file is None:
        return pretrained_normalisation(model, channels), _load_timm(model, network, channels)
    _check_there(file)
    card_file = file.with_name(CARD)
    card = ModelCard.read(card_file) if card_file.is_file() else None
    normalisation = _normalisation(network, card, file, channels)
    foreign = card is not None and card.classes != classes
    return normalisation, load_weights_of(model, file, channels, new_head=foreign)


def _load_timm(model: nn.Module, network: Network, channels: int) -> StartedFrom:
    """timm's own weights, from its cache or the hub; the classifier stays random."""
    timm = import_timm()
    head = _head(model, model.state_dict())
    try:
        own = timm.create_model(
            network.arch, pretrained=True, num_classes=0, in_chans=channels, **network.args
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise PipelineError(
            f"timm's weights could not be loaded: {reason}",
            where=network.arch,
            fix="`python -m pipeline weights ARCH` says what timm has; without a network, put a "
            "file into the folder `checkpoints` and name it in `weights`",
        ) from None
    tensors = {name: t for name, t in own.state_dict().items() if name not in head}
    model.load_state_dict(tensors, strict=False)
    return StartedFrom(source="timm", sha256=None, loaded=len(tensors), new=tuple(sorted(head)))


def load_weights_of(
    model: nn.Module, file: Path, channels: int, *, new_head: bool = False
) -> StartedFrom:
    """Fill `model` from a weights file by name, else by order and shape.

    Tensors of the same names are taken where most of them are there. A file of the same network
    in another library has other names in the same order: it fits where the shapes of all tensors
    agree in this order. For grey images, a first convolution of RGB is summed over its channels.

    Args:
        model: is changed.
        file: safetensors, or what `torch.save` wrote of a state dict.
        channels: of the images.
        new_head: keep the random weights of the classifier, even if the file's would fit.

    Raises:
        PipelineError: unless `ENOUGH` of the backbone's tensors find their place.
    """
    own, given = model.state_dict(), read_state_dict(file)
    head = _head(model, own)
    needed = [name for name in own if not name.endswith(_COUNTER)]
    pairs = {name: name for name in own if name in given}
    if len(pairs) < ENOUGH * len(needed):
        others = [name for name in given if not name.endswith(_COUNTER)]
        ordered = list(zip(needed, others, strict=False))
        fitting = all(name in head or _fits(own[name], given[other]) for name, other in ordered)
        if len(needed) == len(others) and fitting:
            pairs = dict(ordered)
    chosen = {}
    for name, other in pairs.items():
        tensor = _adapted(own[name], given[other], channels)
        if tensor is None and name not in head:
            raise _foreign(
                file,
                f"`{other}` has the shape {list(given[other].shape)}, "
                f"the network's is {list(own[name].shape)}",
            )
        if tensor is not None and not (new_head and name in head):
            _check_values(own[name], tensor, other, file)
            chosen[name] = tensor
    backbone = [name for name in needed if name not in head]
    missing = [name for name in backbone if name not in chosen]
    if len(missing) > (1 - ENOUGH) * len(backbone):
        raise _foreign(
            file,
            f"{len(missing)} of the network's {len(backbone)} backbone tensors, such as "
            f"`{missing[0]}`, are not among the file's {len(given)}, such as `{next(iter(given))}`",
        )
    model.load_state_dict(chosen, strict=False)
    used = {pairs[name] for name in chosen}
    return StartedFrom(
        source=file.name,
        sha256=sha256(file),
        loaded=len(chosen),
        renamed=sum(name != pairs[name] for name in chosen),
        new=tuple(name for name in sorted(needed) if name not in chosen),
        left_over=tuple(name for name in sorted(given.keys() - used) if _COUNTER not in name),
    )


def read_state_dict(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file or of a `torch.save` file, without running its code.

    Raises:
        PipelineError: for a file that is missing, damaged, no state dict, or that holds code.
    """
    _check_there(file)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded = torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        raise PipelineError(
            f"it is damaged or holds code{f' ({code[1]})' if code else ''}, which is not run",
            where=str(file),
            fix="save the state dict alone: `torch.save(model.state_dict(), FILE)`",
        ) from None
    except Exception as error:  # a damaged pickle is a program that can end in any of them
        reason = str(error).partition("\n")[0] or "it ends too early"
        raise PipelineError(
            f"not a weights file, or a damaged one: {reason}",
            where=str(file),
            fix="fetch it again; safetensors and files of `torch.save` are read",
        ) from None
    return _state_dict(loaded, file)


def _check_there(file: Path) -> None:
    if not file.is_file():
        raise PipelineError(
            "there is no such weights file",
            where=str(file),
            fix="put it there, or name another one in `weights`",
        )


def _state_dict(loaded: Any, file: Path) -> dict[str, torch.Tensor]:
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    tensors = loaded if isinstance(loaded, Mapping) else {}
    if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise PipelineError(
            "it holds no state dict (a mapping from names to tensors)",
            where=str(file),
            fix="save the state dict alone: `torch.save(model.state_dict(), FILE)`",
        )
    named = {str(name): tensor for name, tensor in tensors.items()}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in named):
            named = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
    return named


def _fits(own: torch.Tensor, given: torch.Tensor) -> bool:
    """Whether the shapes agree, but for the input channels of a first convolution."""
    if own.shape == given.shape:
        return True
    same_rest = own.shape[:1] + own.shape[2:] == given.shape[:1] + given.shape[2:]
    return own.ndim == 4 and given.ndim == 4 and same_rest and given.shape[1] == 3


def _adapted(own: torch.Tensor, given: torch.Tensor, channels: int) -> torch.Tensor | None:
    """`given` as it fits `own`; None where it does not."""
    if own.shape == given.shape:
        return given
    if _fits(own, given) and own.shape[1] == channels == 1:
        return given.sum(1, keepdim=True)
    return None


def _check_values(own: torch.Tensor, given: torch.Tensor, name: str, file: Path) -> None:
    """Raise `PipelineError` for a tensor that is not made of finite floating-point numbers."""
    if not own.is_floating_point():
        return
    found = None
    if given.is_meta or given.layout != torch.strided or not given.is_floating_point():
        layout = "without values" if given.is_meta else str(given.layout).removeprefix("torch.")
        found = f"is {str(given.dtype).removeprefix('torch.')}, {layout}"
    elif not given.float().isfinite().all():
        found = "has values that are infinite or no numbers"
    if found:
        raise PipelineError(
            f"the tensor `{name}` {found}",
            where=str(file),
            fix="give weights of float32, float16 or bfloat16 as they were trained",
        )


def _head(model: nn.Module, own: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the classifier's tensors."""
    heads = cast(dict[str, Any], model.pretrained_cfg).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    return [name for name in own if any(name.startswith(f"{head}.") for head in heads)]


def _foreign(file: Path, found: str) -> PipelineError:
    return PipelineError(
        f"these are weights of another network: {found}",
        where=str(file),
        fix="name the `arch` and `args` that they were made with",
    )


def _normalisation(
    network: Network, card: ModelCard | None, file: Path, channels: int
) -> Normalisation:
    """From params.yaml, else from the card beside the file; one number per channel."""
    found = network.normalisation or (card.normalisation if card else None)
    if found is None:
        raise PipelineError(
            "the normalisation that these weights need is not known",
            where=str(file),
            fix="set `normalisation` beside `weights`, e.g. `{mean: [127, 127, 127], "
            "std: [128, 128, 128]}` for (x - 127) / 128, or put the card.json of a run beside it",
        )
    mean, std = found.mean, found.std
    if channels == 1 and len(mean) == len(std) == 3:  # the stem's weights are summed over RGB
        return Normalisation(mean=(sum(mean) / 3,), std=(sum(std) / 3,))
    if len(mean) != channels or len(std) != channels:
        raise PipelineError(
            f"its number of channels is not that of the images, {channels}",
            where=f"the `normalisation` of {file}",
            fix="give one mean and one std per channel",
        )
    return Normalisation(mean=mean, std=std)
