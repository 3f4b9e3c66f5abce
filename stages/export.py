"""Stage export@S: the student as ONNX, with its parity measured."""

from pipeline.errors import run
from pipeline.export.onnx import export_student
from pipeline.params import load_params
from pipeline.stage import student_argument


def main() -> None:
    params = load_params()
    parity = export_student(student_argument(params), params.export.opset)
    print(
        f"same argmax as torch on {parity.same_argmax:.2%} of {parity.images} test images, "
        f"largest logit error {parity.max_logit_error:.1e}"
    )


if __name__ == "__main__":
    run(main)
