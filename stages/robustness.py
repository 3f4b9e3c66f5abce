"""Stage robustness@S: a student and its artifacts on corrupted and adversarial test images."""

from pipeline.core.arguments import parse_names, require
from pipeline.core.errors import run
from pipeline.core.params import load
from pipeline.robustness.measure import measure
from pipeline.robustness.params import RobustnessParams
from pipeline.robustness.records import STUDENT, Measured, record_file


def main() -> None:
    (student,) = parse_names("student")
    params = load(RobustnessParams)
    require(student, params.students.enabled, "student", "params.yaml: students.enabled")
    record = measure(params, student)
    print(_line(f"{student} (float)", record.student))
    for name, measured in record.teachers.items():
        print(_line(f"{name} (teacher)", measured))
    for key, row in record.artifacts.items():
        if row.measured:
            print(_line(key, row.measured))
        else:
            print(f"{key}: {row.status.replace('_', ' ')}: {row.reason}")
    print(f"written: {record_file(student)}, on {record.images:,} images")


def _line(name: str, measured: Measured) -> str:
    """The main figures of a network."""
    mce = measured.mce[STUDENT]
    attacked = (f"{attack} {accuracy:.4f}" for attack, accuracy in measured.attacked.items())
    return (
        f"{name}: clean {measured.clean:.4f}, corrupted {measured.mean_corrupted.value:.4f}, "
        f"mCE {mce.value if mce else float('nan'):.3f}, {', '.join(attacked)}"
    )


if __name__ == "__main__":
    run(main)
