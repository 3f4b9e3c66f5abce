"""Grad-CAM against its closed form, and the layer that is found in many networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.attribution.gradcam import Layer, find_layer, grad_cam
from pipeline.attribution.occlusion import Sample
from pipeline.attribution.places import strips
from pipeline.networks.build import build_network
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation


def network(arch: str, size: int, channels: int = 3, **args: object) -> PixelsToLogits:
    torch.manual_seed(0)
    built = build_network(
        Network(arch=arch, args=args), classes=4, channels=channels, image_size=size
    )
    return PixelsToLogits(built, student_normalisation(channels)).eval()


SWIN = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}


@pytest.mark.parametrize(
    ("arch", "args", "size", "layer"),
    [
        (
            "resnet10t",
            {"stem_width": 8},
            28,
            Layer("layer4", 4, 4, False),
        ),
        ("mobilenetv3_small_050", {}, 32, Layer("blocks", 2, 2, False)),
        ("test_efficientnet", {}, 64, Layer("bn2", 4, 4, False)),
        ("test_convnext", {}, 64, Layer("norm_pre", 2, 2, False)),
        ("swin_tiny_patch4_window7_224", SWIN, 64, Layer("norm", 8, 8, True)),
    ],
)
def test_the_last_map_before_pooling_is_found(
    arch: str, args: dict[str, object], size: int, layer: Layer
) -> None:
    assert find_layer(network(arch, size, **args), size, 3) == layer


def test_a_transformer_has_tokens_and_no_map() -> None:
    said = find_layer(network("test_vit", 32, img_size=32), 32, 3)
    assert said == "its last features, of `norm`, are 5 tokens and no map"


def test_a_network_that_pools_at_once_has_no_map() -> None:
    model = network("test_resnet", 32)
    model.network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    assert find_layer(model, 32, 3) == "no feature map of it has more than one position"


def sample(size: int) -> Sample:
    images = np.random.default_rng(1).integers(0, 256, (5, size, size, 3)).astype(np.uint8)
    numbers = np.arange(5)
    return Sample(images, numbers, numbers, images[0], strips(size, 4, 0.25))


@pytest.mark.parametrize(
    ("arch", "args"), [("test_resnet", {}), ("swin_tiny_patch4_window7_224", SWIN)]
)
def test_before_mean_pooling_and_a_linear_layer_it_is_a_class_activation_map(
    arch: str, args: dict[str, object]
) -> None:
    """Then the gradient of a logit to a feature is its weight / (H W), at every position."""
    model, its, targets = network(arch, 64, **args), sample(64), np.array([0, 3, 1, 2, 2])
    layer = find_layer(model, 64, 3)
    assert isinstance(layer, Layer)
    features: list[torch.Tensor] = []
    module = model.network.get_submodule(layer.name)
    handle = module.register_forward_hook(lambda *its: features.append(its[2].clone()))
    with torch.no_grad():
        model(torch.from_numpy(its.images))
    handle.remove()
    maps = features[0].movedim(-1, 1) if layer.channels_last else features[0]
    weights = model.network.get_classifier().weight[torch.from_numpy(targets)]
    cam = F.relu(torch.einsum("nf,nfhw->nhw", weights, maps)) / (layer.height * layer.width)
    expected = F.interpolate(cam[:, None], (4, 4), mode="bilinear", antialias=True)[:, 0]
    found = grad_cam(model, layer, its, targets, "")
    assert found == pytest.approx(expected.detach().numpy(), abs=1e-6)
    assert found.max() > 0 and found.min() >= 0


def test_a_network_that_changes_its_features_in_place_is_read_before() -> None:
    model = network("test_resnet", 32)
    features = nn.Conv2d(3, 6, 3, padding=1)
    head = nn.Sequential(nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.network = nn.Sequential(features, *head, nn.Linear(6, 4))
    assert find_layer(model, 32, 3) == Layer("1", 32, 32, False)
    found = grad_cam(model, Layer("0", 32, 32, False), sample(32), np.zeros(5, np.int64), "")
    assert np.isfinite(found).all()
