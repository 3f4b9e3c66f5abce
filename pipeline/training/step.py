"""One update of an objective from a batch of views; on a GPU, if asked, replayed as one graph."""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from pipeline.core.errors import PipelineError
from pipeline.core.patches import conv2d
from pipeline.core.text import first_line
from pipeline.data.views import Views
from pipeline.training.convolutions import fast_conv2d
from pipeline.training.objective import Objective, Recording, Run, Terms

_PLAIN_STEPS = 3
"""Before a graph is captured: they make the optimizer's state, and let libraries choose kernels."""

Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Pixels, labels and recorded logits of a part of a batch: see `Objective.forward`."""


class Step:
    """The updates of one run, and the sums of the losses since `sums` was last emptied.

    With `cuda_graph`, on one GPU, forward and backward pass and optimizer are captured as a CUDA
    graph after three steps, and replayed from then on: a step of a small network is thousands of
    kernels, each of which takes the host longer to start than the GPU to compute. The batches are
    made outside of it, while the graph before them runs.
    """

    def __init__(
        self,
        fabric: Fabric,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        views: Views,
        run: Run,
        recorded: Recording | None,
    ) -> None:
        """Set up objective and optimizer for the devices of `fabric`."""
        self.fabric, self.views, self.run, self.recorded = fabric, views, run, recorded
        self.wrapped, self.stepper = fabric.setup(objective, optimizer)
        self.sums: Terms = {}
        self._optimizer = optimizer
        self._as_graph = captures(run.training.cuda_graph, fabric)
        if fabric.device.type == "cuda":
            views.keep_on(fabric.device)
        self.forget()

    def forget(self) -> None:
        """Capture anew: what the objective computes, or the optimizer's state, has changed."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._done = 0
        self._held: list[Part] = []
        self._outcome: Terms = {}
        self._progress = torch.zeros((), device=self.fabric.device)
        self._rates = [
            torch.zeros((), device=self.fabric.device) for _ in self._optimizer.param_groups
        ]
        self.stepper.zero_grad()

    def take(self, step: int, epoch: int, samples: NDArray[np.int64], progress: float) -> None:
        """Update from this rank's share of a batch.

        Args:
            step: of the run; with the seed it decides what dropout drops.
            epoch: of the views.
            samples: of all ranks, indices [batch size].
            progress: share of all steps that are done, in [0, 1].
        """
        rank, ranks = self.fabric.global_rank, self.fabric.world_size
        # Dropout uses torch's global generator: seeded by step, its state needs no checkpoint.
        torch.manual_seed((self.run.seed << 32) + step * ranks + rank)
        parts = self._parts(epoch, samples[rank::ranks])
        terms = self._graphed(parts, progress) if self._as_graph else self._update(parts, progress)
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def _parts(self, epoch: int, samples: NDArray[np.int64]) -> list[Part]:
        """The views of `samples`, in `accumulate` parts."""
        device, recorded = self.fabric.device, self.recorded
        shown = epoch if recorded is None else epoch % recorded.epochs
        return [
            (
                *self.views.batch(shown, chosen, device),
                None if recorded is None else recorded.batch(shown, chosen, device),
            )
            for chosen in np.split(samples, self.run.training.accumulate)
        ]

    def _update(self, parts: list[Part], progress: float | torch.Tensor) -> Terms:
        """One step of the optimizer; the mean of each term, in float64."""
        training, found = self.run.training, Terms()
        self.stepper.zero_grad()
        for i, part in enumerate(parts):
            wait: AbstractContextManager[None] = self.fabric.no_backward_sync(
                self.wrapped, enabled=i + 1 < len(parts)
            )
            with wait:
                with conv2d(fast_conv2d):
                    terms: Terms = self.wrapped(*part, progress)
                loss = torch.stack(list(terms.values())).sum() / len(parts)
                self.fabric.backward(loss)
            for name, value in terms.items():
                found[name] = found.get(name, 0) + value.detach().double() / len(parts)
        if training.clip_norm is not None:
            self.fabric.clip_gradients(
                self.wrapped, self.stepper, max_norm=training.clip_norm, error_if_nonfinite=False
            )
        self.stepper.step()
        return found

    def _graphed(self, parts: list[Part], progress: float) -> Terms:
        """`_update` by a graph, which reads its inputs where the first ones have been."""
        self._progress.fill_(progress)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate.fill_(float(group["lr"]))
        if self._done < _PLAIN_STEPS:
            self._done += 1
            side, main = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
            side.wait_stream(main)
            with torch.cuda.stream(side):
                terms = self._update(parts, self._progress)
            main.wait_stream(side)
            return terms
        if self._graph is None:
            self._capture(parts)
        else:
            for held, part in zip(self._held, parts, strict=True):
                for old, new in zip(held, part, strict=True):
                    if old is not None and new is not None:
                        old.copy_(new)
        assert self._graph is not None
        self._graph.replay()
        return self._outcome

    def _capture(self, parts: list[Part]) -> None:
        """Record an update from `parts`, whose memory the graph will read; nothing is computed.

        Raises:
            PipelineError: for an objective or an optimizer that waits for the GPU.
        """
        self._held, graph = parts, torch.cuda.CUDAGraph()
        self.stepper.zero_grad()  # the graph owns the gradients
        try:
            with torch.cuda.graph(graph):
                self._outcome = self._update(parts, self._progress)
        except RuntimeError as error:
            raise PipelineError(
                f"a step cannot be captured as a CUDA graph: {first_line(error)}",
                where=self.run.name,
                fix="set `cuda_graph: false` in its `training`",
            ) from error
        self._graph = graph


def captures(asked: bool, fabric: Fabric) -> bool:
    """Whether steps are captured: on one GPU, if asked."""
    return asked and fabric.device.type == "cuda" and fabric.world_size == 1
