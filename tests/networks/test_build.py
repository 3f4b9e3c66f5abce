"""Networks by timm name, the stem for small images, and checkpoints that must fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.data.records import Manifest
from pipeline.networks.build import build_network
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, pretrained_normalisation, student_normalisation
from pipeline.networks.records import STUDENTS, ModelCard
from pipeline.networks.weights import check_card, load_model, load_weights, save_model

MOBILENET = Network(arch="mobilenetv3_small_050")
RESNET = Network(arch="resnet10t", args={"channels": [8, 8, 16, 16]})


def build(network: Network = MOBILENET, size: int = 28, classes: int = 10) -> nn.Module:
    return build_network(network, classes=classes, channels=1, image_size=size)


def card(**changes: object) -> ModelCard:
    fields = {
        "arch": MOBILENET.arch, "args": {}, "stem_stride": 1, "stem_pool": False,
        "image_size": 28,
        "input_size": 28, "channels": 1, "classes": tuple("abcdefghij"),
        "normalisation": student_normalisation(1), "parameters": 0, "seed": 0, "epochs": 1,
        "best_epoch": 1, "val_top1": 0.5, "data_digest": "", "versions": {},
    }  # fmt: skip
    return ModelCard.model_validate(fields | changes)


@pytest.mark.parametrize("size, stride", [(28, 1), (64, 1), (96, 2)])
def test_auto_keeps_the_resolution_of_small_images(size: int, stride: int) -> None:
    assert build(size=size).get_submodule("conv_stem").stride == (stride, stride)


def test_the_stem_can_be_set() -> None:
    resnet = build(Network(arch="resnet18", stem_stride=1, stem_pool=True))
    assert resnet.get_submodule("conv1").stride == (1, 1)
    assert isinstance(resnet.maxpool, nn.MaxPool2d)
    assert isinstance(build(Network(arch="resnet18", stem_pool=False)).maxpool, nn.Identity)


def test_width_arguments_reach_timm() -> None:
    narrow = build(Network(arch="resnet18", args={"channels": [8, 8, 16, 16]}))
    assert narrow.get_submodule("layer4.1.conv2").weight.shape[0] == 16


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Network(arch="mobilenetv3_smal_050"), "did you mean mobilenetv3_small_050"),
        (Network(arch="resnet18", args={"widht": 2}), "widht"),
        (Network(arch="resnet10t", args={"channels": [24, 48, 96]}), "no attribute 'layer4'"),
        (Network(arch="resnet10t", args={"layers": [1, 1]}), "no attribute 'layer3'"),
        (Network(arch="resnet10t", args={"act_layer": "swihs"}), "KeyError: 'swihs'"),
        (Network(arch="resnet10t", args={"output_stride": 7}), "AssertionError"),
        (Network(arch="resnet10t", args={"features_only": True, "out_indices": [9]}), "IndexError"),
        (Network(arch="mobilenetv3_small_050", stem_pool=True), "no stem pooling"),
        (Network(arch="resnet18", hard_swish="relu6"), "no hard-swish"),
        (Network(arch="vit_tiny_patch16_224", stem_stride=1), "no convolution as its stem"),
    ],
)
def test_an_impossible_network_is_named(network: Network, said: str) -> None:
    with pytest.raises(PipelineError, match=said) as raised:
        build(network)
    assert "\n" not in raised.value.what


def test_relu6_takes_the_place_of_every_hard_swish_also_after_loading(tmp_path: Path) -> None:
    network = build(MOBILENET.model_copy(update={"hard_swish": "relu6"}))
    hard = sum(isinstance(module, nn.Hardswish) for module in build().modules())
    save_model(tmp_path, network, card(hard_swish="relu6"))
    for model in (network, load_model(tmp_path)[0]):
        kinds = [type(module) for module in model.modules()]
        assert nn.Hardswish not in kinds and kinds.count(nn.ReLU6) == hard > 0


def test_pixels_to_logits_is_the_network_on_normalised_channels_first_images() -> None:
    network = build().eval()
    pixels = torch.randint(256, (3, 28, 28, 1), dtype=torch.uint8)
    images = ((pixels.double() - 128) / 64).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        found = PixelsToLogits(network, student_normalisation(1))(pixels)
        torch.testing.assert_close(found, network(images))


def test_a_saved_model_loads_with_the_same_answers(tmp_path: Path) -> None:
    network = build().eval()
    save_model(tmp_path, network, card())
    loaded, read = load_model(tmp_path)
    images = torch.randn(2, 1, 28, 28)
    assert read == card().model_copy(
        update={"weights_digest": sha256(tmp_path / "model.safetensors")}
    )
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), network(images))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data_digest": "2" * 64}, "other train images than data/packed has"),
        ({"classes": ("cat", "dog")}, "made for the classes cat, dog; the data has a, b"),
    ],
)
def test_a_network_made_from_other_data_is_refused_by_name(
    change: dict[str, object], said: str
) -> None:
    packed = Manifest(
        source="", licence="", classes=tuple("abcdefghij"), image_size=28,
        stored_size=28, channels=1, counts={},
        digests={"train_images.npy": "1" * 64}, calibration_digest="", mean=(0.0,), std=(1.0,),
        rejected=(),
    )  # fmt: skip
    check_card(card(data_digest="1" * 64), packed, STUDENTS / "mine")
    with pytest.raises(PipelineError, match=said) as refused:
        check_card(card(**{"data_digest": "1" * 64} | change), packed, STUDENTS / "mine")
    assert refused.value.where == "models/students/mine/card.json"


def test_a_checkpoint_of_other_classes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(build(classes=7).state_dict(), file)
    with pytest.raises(PipelineError, match="the checkpoint knows 7 classes") as error:
        load_weights(build(classes=10), file)
    assert str(file) in str(error.value)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"something.weight": torch.zeros(1)}, file)
    with pytest.raises(PipelineError, match="other tensors than the network has"):
        load_weights(build(), file)


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    torch.save(build().state_dict(), file)
    with pytest.raises(PipelineError, match="weights_only=True"):
        load_weights(build(), file)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no such checkpoint"):
        load_weights(build(), tmp_path / "model.safetensors")


def test_pretrained_statistics_are_in_pixels_and_grey_takes_their_mean() -> None:
    model = build(Network(arch="resnet18"))
    rgb = pretrained_normalisation(model, 3)
    assert rgb.mean == pytest.approx((0.485 * 255, 0.456 * 255, 0.406 * 255))
    assert pretrained_normalisation(model, 1).mean == pytest.approx((sum(rgb.mean) / 3,))
