"""Stage record_teacher: the teacher's logits for the views of every seed."""

from __future__ import annotations

from arms import read_arms

from pipeline.core.errors import run
from pipeline.core.params import load
from pipeline.distill.params import RecordingParams
from pipeline.distill.recording import record_teacher_logits
from pipeline.distill.records import TEACHER_LOGITS


def main() -> None:
    params = load(RecordingParams)
    for seed in read_arms()[0]:
        of_seed = params.model_copy(update={"seed": seed})
        record_teacher_logits(of_seed, TEACHER_LOGITS / str(seed))


if __name__ == "__main__":
    run(main)
