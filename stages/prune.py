"""Stage prune@S: a distilled student loses channels, and learns on."""

from pipeline.core.arguments import parse_names, require
from pipeline.core.errors import run
from pipeline.core.params import load
from pipeline.prune.params import PruneParams
from pipeline.prune.student import prune_student


def main() -> None:
    (student,) = parse_names("student")
    params = load(PruneParams)
    require(student, params.prune.enabled, "student to prune", "params.yaml: prune.enabled")
    prune_student(params, student)


if __name__ == "__main__":
    run(main)
