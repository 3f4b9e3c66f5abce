"""Stage quantize_aware@S: the student goes on learning under int8's rounding."""

from pipeline.core.arguments import parse_names, require
from pipeline.core.errors import run
from pipeline.core.params import load
from pipeline.int8.stage import NOT_ASKED, QuantizeAwareParams, train_quantize_aware


def main() -> None:
    (student,) = parse_names("student")
    params = load(QuantizeAwareParams)
    require(student, params.students.zoo, "student", "params.yaml: students.zoo")
    top1 = train_quantize_aware(params, student)
    if top1 is None:
        print(f"{student}: nothing to do: {NOT_ASKED}")
    else:
        print(f"{student}: val top-1 {top1:.4f} under int8's rounding")


if __name__ == "__main__":
    run(main)
