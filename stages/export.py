"""Stage export@S: the student as ONNX, with its parity measured."""

from pipeline.core.arguments import parse_names, require
from pipeline.core.errors import run
from pipeline.core.params import load
from pipeline.export.onnx import export_student
from pipeline.export.params import ExportParams


def main() -> None:
    (student,) = parse_names("student")
    params = load(ExportParams)
    require(student, params.students.zoo, "student", "params.yaml: students.zoo")
    parity = export_student(student, params.export.opset, params.prune.enabled)
    print(
        f"same argmax as torch on {parity.same_argmax:.2%} of {parity.images} test images, "
        f"largest logit error {parity.max_logit_error:.1e}"
    )


if __name__ == "__main__":
    run(main)
