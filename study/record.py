"""The study's stage `record`: what the teacher says of the views of every seed."""

from __future__ import annotations

from arms import logits_folder, read_arms, with_seed

from pipeline.cli.params import load_params
from pipeline.core.errors import run
from pipeline.distill.recording import record_teacher_logits


def main() -> None:
    params = load_params()
    for seed in read_arms()[0]:
        record_teacher_logits(with_seed(params, seed), logits_folder(seed))


if __name__ == "__main__":
    run(main)
