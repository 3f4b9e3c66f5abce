"""Stage compile@B-S: a student for one backend, evaluated on the test split."""

from pipeline.compile.params import CompileParams
from pipeline.compile.records import Attempt
from pipeline.compile.student import compile_student
from pipeline.core.arguments import parse_names, require
from pipeline.core.errors import run
from pipeline.core.params import load
from pipeline.data.recall import interval


def main() -> None:
    name, student = parse_names("backend", "student")
    params = load(CompileParams)
    require(student, params.students.zoo, "student", "params.yaml: students.zoo")
    for artifact, metrics in compile_student(params, name, student):
        for attempt in metrics.ladder:
            print(_line(attempt))
        if metrics.undecided:
            print(f"  {metrics.undecided}")
        print(
            f"{artifact}: top-1 {metrics.top1:.4f} ({interval(metrics.top1, metrics.images)}; drop "
            f"{metrics.top1_drop:+.4f}), balanced {metrics.balanced_accuracy:.4f}, "
            f"{metrics.size_bytes / 1000:,.0f} kB, {metrics.int8_mac_share:.1%} of MACs in int8, "
            f"evaluated with {metrics.evaluated_with}",
            flush=True,
        )


def _line(attempt: Attempt) -> str:
    """One attempt of the ladder."""
    if attempt.val_drop is None:
        return f"  {attempt.rung}, {attempt.recipe}: {attempt.failure}"
    chance = "" if attempt.val_chance is None else f" (by chance: p = {attempt.val_chance:.2g})"
    kept = ", kept" if attempt.kept else ""
    return (
        f"  {attempt.rung}, {attempt.recipe}: {attempt.val_drop:+.4f} on val{chance}, "
        f"{attempt.seconds:.0f} s{kept}"
    )


if __name__ == "__main__":
    run(main)
