"""Networks that learn with parallel branches and ship without: RepVGG, MobileOne, FastViT and more.

Once trained, the branches of such a block are one convolution (arXiv 2101.03697): the same function
in fewer operations.
"""

from __future__ import annotations

from torch import nn

from pipeline.core.patches import import_timm

_METHODS = ("fuse", "reparameterize", "switch_to_deploy")
"""By which timm's blocks become one convolution."""


def has_branches(network: nn.Module) -> bool:
    """Whether `fuse_branches` would change a network."""
    return any(hasattr(module, name) for module in network.modules() for name in _METHODS)


def fuse_branches(network: nn.Module) -> nn.Module:
    """Make one convolution of every block of branches, as timm does it.

    The logits stay the same but for float rounding. Where timm's blocks fold their batch norms,
    too, these go.

    Args:
        network: in eval mode; is changed in place, and can be trained no further.

    Returns:
        `network`.
    """
    if not has_branches(network):
        return network
    fused: nn.Module = import_timm().utils.model.reparameterize_model(network, inplace=True)
    return fused.requires_grad_(False)
