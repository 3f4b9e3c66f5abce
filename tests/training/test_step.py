"""A step as a CUDA graph: the same updates as without; on a CPU, with a graph that is simulated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.errors import PipelineError
from pipeline.networks.params import Network
from pipeline.training import loop, step
from pipeline.training.params import Recipe
from pipeline.training.recipe import build_optimizer
from pipeline.training.records import read_curve
from pipeline.training.rounding import Int8Phase
from pipeline.training.step import Step
from pipeline.training.teacher import Supervised
from tests.training.conftest import (
    TINY,
    TRAINING,
    model,
    run,
    same,
    split,
    stopped_after,
    views,
    weights,
)

pytestmark = pytest.mark.usefixtures("folder")

GRAPH = TRAINING.model_copy(update={"cuda_graph": True})
ADAMW = {"optimizer": "adamw", "lr": 0.005, "ema": 0.9, "clip_norm": 1.0, "accumulate": 2}
DROPPING = Network(**TINY.model_dump() | {"args": {"drop_rate": 0.3}})

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Graphs on a CPU: a capture computes nothing that lasts, a replay computes it all again.

    As on a GPU, it reads the tensors that were there when it was captured. Returns how many
    replays each capture had.
    """
    replays: list[int] = []
    owner: list[Step] = []

    class Graph:
        def replay(self) -> None:
            replays[-1] += 1
            its = owner[-1]
            for name, value in its._update(its._held, its._progress).items():
                its._outcome[name].copy_(value)

    @contextmanager
    def capture(_: Graph) -> Iterator[None]:
        its = owner[-1]
        network, optimizer = its.wrapped, its._optimizer
        held = deepcopy(network.state_dict()), deepcopy(optimizer.state_dict())
        with torch.random.fork_rng(devices=[]):
            yield
        network.load_state_dict(held[0])
        optimizer.load_state_dict(held[1])
        replays.append(0)

    made = Step.__init__

    def init(self: Step, *arguments: Any) -> None:
        owner.append(self)
        made(self, *arguments)

    class Stream:
        def wait_stream(self, _: object) -> None: ...

    monkeypatch.setattr(Step, "__init__", init)
    monkeypatch.setattr(step, "captures", lambda asked, _: asked)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    return replays


def test_a_graph_makes_the_same_updates(captured: list[int]) -> None:
    """Of other images, at another rate and with other dropout in every step."""
    plain, replayed = model(DROPPING), model(DROPPING)
    run(plain, "a", TRAINING)
    curve = read_curve("net")
    run(replayed, "b", GRAPH)
    assert captured == [15], "18 steps, three of which are made without a graph"
    assert same(weights(plain), weights(replayed))
    assert [row.train_loss for row in read_curve("net")] == [row.train_loss for row in curve]


def test_the_phase_under_rounding_is_captured_anew(captured: list[int]) -> None:
    plain, replayed = model(), model()
    phase = Int8Phase(0.5, split(1)[0])
    run(plain, "a", TRAINING, int8=phase)
    run(replayed, "b", GRAPH, int8=phase)
    assert captured == [6, 6]
    assert same(weights(plain), weights(replayed))


def test_a_run_that_was_stopped_is_captured_anew(captured: list[int]) -> None:
    undisturbed, again = model(), model(seed=99)
    run(undisturbed, "a", TRAINING)
    with stopped_after(9):
        run(model(), "b", GRAPH, checkpoint_seconds=0)
    run(again, "b", GRAPH)
    assert captured == [6, 6]
    assert same(weights(undisturbed), weights(again))


def test_without_a_gpu_the_parameter_changes_nothing() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    plain, asked = model(), model()
    run(plain, "a", TRAINING)
    run(asked, "b", GRAPH)
    assert same(weights(plain), weights(asked))


def test_a_step_that_waits_for_the_gpu_is_told(
    captured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def refuse(_: object) -> Iterator[None]:
        yield
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    with pytest.raises(
        PipelineError, match=r"(?s)cannot be captured .*capturing.*cuda_graph: false"
    ):
        run(model(), "a", GRAPH)
    assert not captured


def test_an_optimizer_that_cannot_be_captured_is_told() -> None:
    with pytest.raises(PipelineError, match=r"(?s)capturable.*cuda_graph: false"):
        build_optimizer(Supervised(model(), 0.0), TRAINING, "net", capturable=True)


def test_images_that_fit_are_read_from_the_gpus_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, kept in ((4 * 96 * 256, True), (4 * 96 * 256 - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 0))
        shown = views()
        shown.keep_on(torch.device("cpu"))
        assert (shown._kept is not None) == kept
        order = np.random.default_rng(0).permutation(96)
        for one, other in zip(
            shown.batch(1, order, torch.device("cpu")),
            views().batch(1, order, torch.device("cpu")),
            strict=True,
        ):
            assert torch.equal(one, other)


@on_gpu
@pytest.mark.parametrize("changes", [ADAMW, {"optimizer": "muon", "precision": "bf16"}])
def test_on_a_gpu_a_graph_gives_the_same_bits(changes: dict[str, Any]) -> None:
    plain, one, two = model(DROPPING), model(DROPPING), model(DROPPING)
    asked = Recipe(**TRAINING.model_dump() | changes | {"cuda_graph": True})
    run(plain, "a", asked.model_copy(update={"cuda_graph": False}))
    run(one, "b", asked)
    run(two, "c", asked)
    assert same(weights(one), weights(two))
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(tensor, weights(one)[name], rtol=1e-3, atol=1e-4)


def test_the_loop_asks_for_an_optimizer_that_can_be_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []

    def build(*arguments: Any, capturable: bool) -> Any:
        asked.append(capturable)
        return build_optimizer(*arguments)

    monkeypatch.setattr(loop, "build_optimizer", build)
    monkeypatch.setattr(loop, "captures", lambda wanted, _: wanted)
    run(model(), "a", GRAPH, epochs=1)
    run(model(), "b", TRAINING, epochs=1)
    assert asked == [True, False]
