"""The batch axis is dynamic, and the image has one reader all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.export.onnx import export_onnx
from pipeline.export.session import load
from pipeline.networks.inference import predict, set_up_torch
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.records import ModelCard

SIZE = 8


class Pooled(nn.Module):
    """Ends with torch's adaptive pooling, timm's default, of a channels-last tensor."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3)
        self.head = nn.Linear(6, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(self.conv(image), 1)
        return self.head(pooled.flatten(1))


class WithToken(Pooled):
    """A class token for each image, as a vision transformer has it."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        patches = self.conv(image).flatten(2).transpose(1, 2)
        token = self.conv.bias.expand(image.shape[0], 1, -1)
        return self.head(torch.cat([token, patches], 1).amax(1))


class TokenFirst(Pooled):
    """Takes the batch size before any layer, where only the image has it."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        row = self.head.weight[0, :1].expand(image.shape[0], image.shape[1], 1, SIZE)
        return super().forward(torch.cat([row, image], 2))


def exported(network: nn.Module, channels: int, classes: int, file: Path) -> PixelsToLogits:
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = PixelsToLogits(network, student_normalisation(channels)).eval()
    card = ModelCard(
        arch="tiny", args={}, stem_stride="auto", stem_pool="auto", image_size=SIZE,
        input_size=SIZE, channels=channels, classes=tuple("abcdefg"[:classes]),
        normalisation=student_normalisation(channels), parameters=0, seed=0, epochs=0,
        best_epoch=0, val_top1=0.0, data_digest="", versions={},
    )  # fmt: skip
    export_onnx(model, card, 20, file)
    return model


@pytest.mark.parametrize(
    ("kind", "channels", "classes"), [(Pooled, 1, 3), (Pooled, 3, 7), (WithToken, 3, 3)]
)
def test_the_image_has_one_reader_and_any_batch_the_answers_of_torch(
    tmp_path: Path, kind: type[Pooled], channels: int, classes: int
) -> None:
    set_up_torch(0)
    file = tmp_path / "model.onnx"
    model = exported(kind(channels, classes), channels, classes, file)
    graph = onnx.load(file).graph
    assert [node.op_type for node in graph.node if "image" in node.input] == ["Cast"]
    kinds = {node.op_type for node in graph.node}
    assert not kinds & {"Gather", "Range"}, "pooling is a mean, not a gather"
    assert ("Shape" in kinds) == (kind is WithToken)
    for n in (1, 5):
        pixels = np.random.default_rng(n).integers(0, 256, (n, SIZE, SIZE, channels), np.uint8)
        found = load(str(file), 1)(pixels)
        np.testing.assert_allclose(found, predict(model, pixels).numpy(), atol=1e-5)


def test_a_second_reader_that_cannot_be_moved_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    with pytest.raises(PipelineError, match=r"export of tiny: .*in 2 places \(Shape, Cast\)"):
        exported(TokenFirst(1, 3), 1, 3, file)
    assert not file.exists()


def test_what_torch_cannot_export_is_one_sentence(tmp_path: Path) -> None:
    class Deciding(Pooled):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(image if image.sum() > 0 else -image)

    with pytest.raises(PipelineError, match=r"export of tiny: torch\.export refuses the network: "):
        exported(Deciding(1, 3), 1, 3, tmp_path / "model.onnx")
