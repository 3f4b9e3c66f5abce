"""Rounding in a float network: closed forms, torch and ONNX Runtime as references, no traces."""

from __future__ import annotations

import copy
import functools
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.networks.fake_quantization import (
    PIXELS,
    Grid,
    calibrate,
    fake_quantization,
    round_input,
    round_weight,
)
from pipeline.networks.inference import predict
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.records import ModelCard
from tests import students as drawn
from tests.networks.conftest import int8_logits, make_uneven, trained
from tests.training.conftest import TINY, model, same, split, weights

IMAGES = split(1)[0]
RELU = Network(arch="mobilenetv4_conv_small_050")
LAYERS = (nn.Conv2d, nn.Linear)


def test_a_weight_is_off_by_half_a_step_at_most_per_output_channel() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 3, 3) * torch.logspace(-3, 3, 6).view(6, 1, 1, 1)
    weight[2] = 0
    rounded = round_weight(weight)
    for before, after in zip(weight, rounded, strict=True):
        step = before.abs().max() / 127
        assert (before - after).abs().max() <= step * 0.5001
        torch.testing.assert_close(after.abs().max(), before.abs().max())


def test_a_channel_has_255_levels() -> None:
    weight = torch.linspace(-1, 1, 10_001).view(1, -1)
    levels = round_weight(weight).unique()
    torch.testing.assert_close(levels, torch.arange(-127, 128) / 127)


def test_an_input_is_off_by_half_a_step_at_most_within_its_range() -> None:
    grid = Grid.spanning(-0.7, 2.1)
    x = torch.linspace(-0.7, 2.1, 10_001)
    rounded = round_input(x, grid)
    assert len(rounded.unique()) == 256
    assert (rounded - x).abs().max() <= grid.scale * 0.5001
    assert round_input(torch.zeros(1), grid) == 0
    ends = round_input(torch.tensor([-50.0, 50.0]), grid)
    torch.testing.assert_close(ends, rounded[[0, -1]])


@pytest.mark.parametrize("ends", [(-0.7, 2.1), (0.0, 6.0), (-3.0, -1.0), (2.0, 3.0)])
def test_an_input_and_its_gradient_are_those_of_torch(ends: tuple[float, float]) -> None:
    grid = Grid.spanning(*ends)
    found, expected = (torch.linspace(-7, 7, 997).requires_grad_() for _ in range(2))
    torch.manual_seed(0)
    gradient = torch.randn(997)
    one = round_input(found, grid)
    two = torch.fake_quantize_per_tensor_affine(expected, grid.scale, grid.zero_point, 0, 255)
    torch.testing.assert_close(one, two)
    one.backward(gradient)
    two.backward(gradient)
    assert found.grad is not None and 0 < found.grad.count_nonzero() < 997
    assert torch.equal(found.grad, expected.grad)


def test_the_gradient_goes_straight_through_a_weight() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3).requires_grad_()
    gradient = torch.randn(4, 3, 3, 3)
    round_weight(weight).backward(gradient)
    assert torch.equal(weight.grad, gradient)


def test_an_input_that_is_always_zero_stays_zero() -> None:
    assert round_input(torch.zeros(3), Grid.spanning(0.0, 0.0)).tolist() == [0, 0, 0]


def test_pixels_are_not_rounded() -> None:
    pixels = (torch.arange(256) - 128) / 64
    assert torch.equal(round_input(pixels, PIXELS), pixels)


def test_rounding_and_batch_norms_scale_commute() -> None:
    """Folded first and rounded then, as backends do it, gives what training sees unfolded."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(5, 8, 3, bias=False), nn.BatchNorm2d(8)
    nn.init.normal_(norm.weight)  # of either sign
    nn.init.uniform_(norm.running_var, 0.01, 9)
    folded = fuse_conv_bn_eval(conv.eval(), norm.eval())
    folded.weight.data = round_weight(folded.weight.data)
    conv.weight.data = round_weight(conv.weight.data)
    x = torch.randn(2, 5, 9, 9)
    torch.testing.assert_close(norm(conv(x)), folded(x))


@pytest.mark.parametrize("network", [TINY, RELU], ids=["hard-swish and SE", "ReLU"])
def test_every_layer_takes_rounded_inputs_and_weights(network: Network) -> None:
    student = model(network)
    grids = calibrate(student, IMAGES)
    layers = {n: m for n, m in student.network.named_modules() if isinstance(m, LAYERS)}
    unfused = {
        n for n, m in student.network.named_modules()
        if isinstance(m, nn.Hardswish | nn.Hardsigmoid)
    }  # fmt: skip
    assert grids.keys() == layers.keys() | unfused and bool(unfused) == (network == TINY)
    assert [path for path, its in grids.items() if its.grid == PIXELS] == ["conv_stem"]
    seen: dict[str, torch.Tensor] = {}
    used: dict[str, torch.Tensor] = {}

    def note(path: str, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        seen[path] = inputs[0].clone()  # activations may work in place
        if path in layers:
            used[path] = module.weight.detach()

    with fake_quantization(student.network, grids):
        for path in grids:
            module = student.network.get_submodule(path)
            module.register_forward_pre_hook(functools.partial(note, path))
        predict(student, IMAGES)
    for path, its in grids.items():
        steps = seen[path] / its.grid.scale + its.grid.zero_point
        torch.testing.assert_close(steps, steps.round().clamp(0, 255), atol=1e-3, rtol=0)
    for path, layer in layers.items():
        assert not torch.equal(used[path], layer.weight)
        assert torch.equal(used[path], round_weight(layer.weight))


class Shortcut(nn.Module):
    """A residual block; it keeps what it adds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shortcut = x
        return self.conv(x) + x


def test_a_shortcut_has_the_values_that_its_block_computes_with() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Sequential(Shortcut()), nn.Flatten())
    student = PixelsToLogits(network, student_normalisation(1))
    grids = calibrate(student, IMAGES)
    assert {path: its.at for path, its in grids.items()} == {"0": "0", "1.0.conv": "1"}
    with fake_quantization(network, grids):
        predict(student, IMAGES)
        its = grids["1.0.conv"].grid
        steps = network[1][0].shortcut / its.scale + its.zero_point
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)


class Marked(nn.Module):
    """Passes a tensor on, and keeps a weak reference to it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = weakref.ref(x)
        return x


class Later(nn.Module):
    """Asserts that nobody holds the tensor that `marked` saw."""

    def __init__(self, marked: Marked) -> None:
        super().__init__()
        self.marked = [marked]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.marked[0].seen() is None
        return x


def test_calibrating_holds_no_tensor_that_the_network_is_done_with() -> None:
    marked = Marked()
    layers = (nn.Conv2d(1, 4, 1), marked, nn.Conv2d(4, 4, 1), Later(marked), nn.Flatten())
    calibrate(PixelsToLogits(nn.Sequential(*layers), student_normalisation(1)), IMAGES)


def test_afterwards_the_network_is_the_plain_one() -> None:
    student = model()
    before, logits = weights(student), predict(student, IMAGES)
    kinds = {path: type(module) for path, module in student.named_modules()}
    with fake_quantization(student.network, calibrate(student, IMAGES)):
        assert not torch.equal(predict(student, IMAGES), logits)
    assert same(weights(student), before)
    assert torch.equal(predict(student, IMAGES), logits)
    assert {path: type(module) for path, module in student.named_modules()} == kinds


def test_an_error_leaves_no_rounding_behind() -> None:
    student = model()
    logits = predict(student, IMAGES)
    with (
        pytest.raises(KeyboardInterrupt),
        fake_quantization(student.network, calibrate(student, IMAGES)),
    ):
        raise KeyboardInterrupt
    assert torch.equal(predict(student, IMAGES), logits)


def test_everything_learns_but_the_statistics_of_batch_norm() -> None:
    student = model()
    parameters = dict(student.named_parameters())
    before = weights(student)
    with fake_quantization(student.network, calibrate(student, IMAGES)):
        student.train()
        student(torch.from_numpy(IMAGES)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in parameters.values())
    assert same(weights(student), before)
    assert {path for path, _ in student.named_parameters()} == parameters.keys()


def test_a_copy_rounds_its_own_weights() -> None:
    """A moving average of weights is kept in a copy of the model."""
    student = model()
    with fake_quantization(student.network, calibrate(student, IMAGES)):
        other = copy.deepcopy(student)
        assert torch.equal(predict(other, IMAGES), predict(student, IMAGES))
        for parameter in other.parameters():
            parameter.data.zero_()
        assert not predict(other, IMAGES).any()
        assert predict(student, IMAGES).any()


def compared(
    student: PixelsToLogits, card: ModelCard
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of 300 images: in float, under rounding, and in int8 by ONNX Runtime."""
    calibration, images = drawn.draw(64, seed=3)[0], drawn.draw(300, seed=2)[0]
    plain = predict(student, images)
    with fake_quantization(student.network, calibrate(student, calibration)):
        rounded = predict(student, images)
    return plain, rounded, int8_logits(student, card, calibration, images)


def agreement(one: torch.Tensor, two: torch.Tensor) -> float:
    return (one.argmax(1) == two.argmax(1)).double().mean().item()


def test_the_answers_are_those_of_int8_in_onnx_runtime() -> None:
    _, rounded, int8 = compared(*trained("hard_swish"))
    assert agreement(rounded, int8) > 0.97


def test_where_int8_goes_wrong_rounding_goes_wrong_alike() -> None:
    student, card = trained("relu")
    even = predict(student, drawn.draw(300, seed=2)[0])
    make_uneven(student.network, factor=2048)
    plain, rounded, int8 = compared(student, card)
    torch.testing.assert_close(plain, even, atol=1e-3, rtol=1e-3)
    assert agreement(plain, int8) < 0.5
    assert agreement(rounded, int8) > 0.96
    assert (rounded - int8).abs().mean() < 0.5 * (plain - int8).abs().mean()
