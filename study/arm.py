"""Stage arm@A: the student trained with the losses of one arm, once for every seed."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from arms import ARMS, read_arms

from pipeline.core.arguments import parse_names, require
from pipeline.core.errors import run
from pipeline.core.params import load
from pipeline.distill.params import DistillParams, LossTerm
from pipeline.distill.records import TEACHER_LOGITS
from pipeline.distill.student import distill_student


def main() -> None:
    (arm,) = parse_names("arm")
    seeds, arms = read_arms()
    require(arm, arms, "arm", str(ARMS))
    # One thread per run: two small networks in parallel train faster than one on two threads.
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), _use_one_thread) as pool:
        for done in [pool.submit(train, arm, seed) for seed in seeds]:
            done.result()


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    os.environ["TTY_COMPATIBLE"] = "0"  # several progress bars would overwrite each other


def train(arm: str, seed: int) -> None:
    """One run: the first student with the losses of `arm`."""
    params = load(DistillParams)
    losses = tuple(LossTerm.model_validate(term) for term in read_arms()[1][arm])
    distill = params.distill.model_copy(update={"losses": losses})
    distill_student(
        params.model_copy(update={"seed": seed, "distill": distill}),
        params.students.enabled[0],
        teacher_logits=TEACHER_LOGITS / str(seed),
        run_as=f"{arm}/{seed}",
    )


if __name__ == "__main__":
    run(main)
