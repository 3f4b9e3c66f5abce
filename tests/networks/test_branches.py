"""Networks that learn with branches and ship without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.networks.branches import fuse_branches, has_branches
from pipeline.networks.build import build_network
from pipeline.networks.params import Network
from pipeline.networks.pixels import student_normalisation
from pipeline.networks.records import ModelCard
from pipeline.networks.weights import load_model, save_model

BRANCHED = ("repvgg_a0", "mobileone_s0", "fastvit_t8", "repghostnet_050")


def learnt(arch: str) -> nn.Module:
    """A network whose batch norms have statistics of images, and scales that differ."""
    torch.manual_seed(0)
    network = build_network(Network(arch=arch), classes=4, channels=3, image_size=32)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        network.train()(torch.randn(16, 3, 32, 32))
    return network.eval()


@pytest.mark.parametrize("arch", BRANCHED)
def test_a_loaded_network_is_fused_and_computes_the_same(arch: str, tmp_path: Path) -> None:
    network, images = learnt(arch), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        logits = network(images)
    card = ModelCard.model_validate({
        "arch": arch, "args": {}, "stem_stride": "auto", "stem_pool": "auto", "image_size": 32,
        "input_size": 32, "channels": 3, "classes": tuple("abcd"),
        "normalisation": student_normalisation(3), "parameters": 0, "seed": 0, "epochs": 1,
        "best_epoch": 1, "val_top1": 0.5, "data_digest": "", "versions": {},
    })  # fmt: skip
    save_model(tmp_path, network, card)
    loaded, _ = load_model(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), logits, rtol=1e-3, atol=1e-3 * logits.std())
    sizes = [len(list(one.modules())) for one in (loaded, network)]
    assert sizes[0] < sizes[1]


def test_other_networks_stay_as_they_are() -> None:
    network = build_network(
        Network(arch="mobilenetv4_conv_small_050"), classes=4, channels=3, image_size=32
    )
    before = dict(network.named_modules())
    assert not has_branches(network)
    assert dict(fuse_branches(network.eval()).named_modules()) == before
    assert all(parameter.requires_grad for parameter in network.parameters())
