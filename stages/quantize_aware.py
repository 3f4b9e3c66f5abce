"""Stage quantize_aware@S: the student goes on learning under int8's rounding."""

from pipeline.core.arguments import parse_names, require
from pipeline.core.errors import run
from pipeline.core.params import load
from pipeline.int8.params import QUANTIZE_AWARE as RUNG
from pipeline.int8.stage import QuantizeAwareParams, train_quantize_aware


def main() -> None:
    (student,) = parse_names("student")
    params = load(QuantizeAwareParams)
    require(student, params.students.zoo, "student", "params.yaml: students.zoo")
    found = train_quantize_aware(params, student)
    if isinstance(found, str):
        print(f"{student}: no weights for the rung `{RUNG}`: {found}")
    else:
        print(f"{student}: val top-1 {found:.4f} under int8's rounding")


if __name__ == "__main__":
    run(main)
