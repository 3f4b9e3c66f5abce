"""The study's losses, and its stage `arm`: one student under one of them, for every seed."""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import yaml

from pipeline.cli.params import Params, load_params
from pipeline.core.errors import PipelineError, run
from pipeline.distill.params import LossTerm
from pipeline.distill.student import distill_student

ARMS = Path("arms.yaml")


def read_arms() -> tuple[tuple[int, ...], dict[str, tuple[LossTerm, ...]]]:
    """The seeds, and the losses of every arm by its name."""
    tree = yaml.safe_load(ARMS.read_text())
    return tuple(tree["seeds"]), {
        name: tuple(LossTerm.model_validate(term) for term in terms)
        for name, terms in tree["arms"].items()
    }


def with_seed(params: Params, seed: int) -> Params:
    """Another initialisation, order, augmentation and dropout."""
    return params.model_copy(update={"seed": seed})


def logits_folder(seed: int) -> Path:
    return Path("models/teacher_logits") / str(seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", required=True)
    name = parser.parse_args().arm
    seeds, arms = read_arms()
    if name not in arms:
        known = ", ".join(arms)
        raise PipelineError(f"there is no arm `{name}`; known are {known}", where=str(ARMS))
    # One thread a run: two small networks side by side train faster than one on two threads.
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), initializer=_alone) as pool:
        for done in [pool.submit(train, name, seed) for seed in seeds]:
            done.result()


def _alone() -> None:
    torch.set_num_threads(1)
    os.environ["TTY_COMPATIBLE"] = "0"  # no progress bars side by side


def train(name: str, seed: int) -> None:
    """One run: the student under the losses of an arm."""
    params = with_seed(load_params(), seed)
    distill = params.distill.model_copy(update={"losses": read_arms()[1][name]})
    distill_student(
        params.model_copy(update={"distill": distill}),
        params.students.enabled[0],
        teacher_logits=logits_folder(seed),
        run_as=f"{name}/{seed}",
    )


if __name__ == "__main__":
    run(main)
