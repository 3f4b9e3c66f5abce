"""The study's stage `record`: what the teacher says of the views of every seed."""

from __future__ import annotations

from arms import read_arms, signals_folder, with_seed

from pipeline.distill.signals import record_signals
from pipeline.errors import run
from pipeline.params import load_params


def main() -> None:
    params = load_params()
    for seed in read_arms()[0]:
        record_signals(with_seed(params, seed), signals_folder(seed))


if __name__ == "__main__":
    run(main)
