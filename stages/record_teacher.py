"""Stage record_teacher: the teachers' logits for every view that students will see."""

from pipeline.core.errors import run
from pipeline.core.params import load
from pipeline.distill.params import RecordingParams
from pipeline.distill.recording import record_teacher_logits


def main() -> None:
    record_teacher_logits(load(RecordingParams))


if __name__ == "__main__":
    run(main)
