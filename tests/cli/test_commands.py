from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.accuracy.metrics import probabilities
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.registry import backend, backend_names
from pipeline.cli.commands import main
from pipeline.cli.doctor import install_command
from pipeline.cli.params import Params
from pipeline.core.errors import PipelineError

ROOT = Path(__file__).parents[2]
STUDENT = "mnv4_small_050"


def predict(*arguments: str, **named: str) -> int:
    options = {"student": STUDENT, "backend": "onnxruntime", "precision": "fp32"} | named
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return main(["predict", *arguments, *words])


@pytest.fixture
def red(workspace: Params) -> str:  # noqa: ARG001 - it is the current folder
    Image.new("RGB", (20, 12), (250, 30, 60)).save("red.png")
    return "red.png"


def test_predict_says_what_the_image_shows(red: str, capsys) -> None:
    Image.new("RGB", (8, 8), (0, 0, 255)).save("blue.png")
    assert predict(red, "blue.png", "--json", "--top", "2") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["runtime"].startswith("onnxruntime ")
    first, second = answer["images"]
    assert [found["class"] for found in first["classes"]] == ["red", "blue"]
    assert second["image"] == "blue.png" and second["classes"][0]["class"] == "blue"
    # logits are (mean of the channel - 128) / 64
    expected = probabilities(np.array([[122, -98, -68]]) / 64)[0]
    assert first["classes"][0]["probability"] == pytest.approx(expected[0], abs=1e-5)


def test_predict_shows_a_table_to_people(red: str, capsys) -> None:
    assert predict(red) == 0
    shown = capsys.readouterr()
    assert "red.png" in shown.out and "red 9" in shown.out and "onnxruntime" in shown.err


def test_predict_for_tensorrt_says_what_really_ran(red: str, capsys) -> None:
    assert predict(red, "--json", backend="tensorrt", precision="fp16") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["images"][0]["classes"][0]["class"] == "red"
    if backend("tensorrt").unmeasurable():
        assert answer["runtime"].startswith("onnxruntime ")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"student": "mnv4_smal_050"}, "did you mean `mnv4_small_050`"),
        ({"student": "x"}, "known are mnv3_small_050, mnv3_small_050_relu6, mnv4"),
        ({"backend": "onnxruntim"}, "did you mean `onnxruntime`"),
        ({"precision": "int4"}, "ONNX Runtime: there is no precision `int4`; did you mean `int8`"),
        ({"precision": "int8"}, "dvc repro"),
        ({"student": "mnv3_small_050"}, "dvc repro"),
    ],
)
def test_predict_explains_a_wrong_name(red: str, named: dict[str, str], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        predict(red, **named)


def test_predict_names_an_image_that_is_missing_or_broken(red: str) -> None:
    content = Path(red).read_bytes()
    Path("torn.png").write_bytes(content[: len(content) // 2])
    for image in ("none.png", "torn.png"):
        with pytest.raises(PipelineError, match=image):
            predict(red, image)


def test_predict_trusts_no_file_but_the_compiled_one(red: str) -> None:
    model = Artifact(STUDENT, "onnxruntime", "fp32").folder / "model.onnx"
    model.write_bytes(model.read_bytes() + b"x")
    with pytest.raises(PipelineError, match="damaged or of another run"):
        predict(red)
    model.unlink()
    with pytest.raises(PipelineError, match=r"model\.onnx"):
        predict(red)


def test_probabilities_sum_to_one_whatever_the_logits() -> None:
    logits = np.array([[1e4, -1e4, 0], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(probabilities(logits), [[1, 0, 0], [1 / 3] * 3])


@pytest.mark.usefixtures("workspace")
def test_results_end_with_the_place_of_the_report(capsys) -> None:
    assert main(["results"]) == 0
    assert "dvc repro" in capsys.readouterr().out.splitlines()[-1]
    report = Path("reports/report.html")
    report.parent.mkdir()
    report.touch()
    assert main(["results"]) == 0
    out = capsys.readouterr().out
    assert STUDENT in out and out.splitlines()[-1].endswith(report.resolve().as_uri())


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from pipeline.cli.commands import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'torch','numpy','pydantic','rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(command in done.stdout for command in ("doctor", "predict", "results"))


def test_an_error_is_one_message_and_a_code(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "results"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: params.yaml: there is no such file")


def test_doctor_tells_of_every_runtime(capsys) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in backend_names())
    assert "Instruction sets" in out and "Accelerators" in out


def test_doctor_prints_the_command_that_installs_what_is_missing(tmp_path: Path) -> None:
    """Run where every package is found but OpenVINO's two: a folder of links without them."""
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.lower().startswith(("openvino", "nncf")):
            (tmp_path / entry.name).symlink_to(entry)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "pipeline", "doctor"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith(" openvino"))
    assert row.count("no: ") == 3
    assert f"openvino: {install_command(['openvino', 'nncf'])}" in done.stdout


def test_install_commands_are_pinned_as_the_project_is() -> None:
    command = install_command(["ai-edge-litert", "onnx"])
    lines = (ROOT / "pyproject.toml").read_text()
    assert command.startswith("pip install 'ai-edge-litert==")
    assert all(f'"{word}"' in lines for word in command.replace("'", "").split()[2:])
    packages = [package for name in backend_names() for package in backend(name).packages]
    assert all("==" in word for word in install_command(packages).split()[2:])
    assert install_command(["of-another-package"]) == "pip install 'of-another-package'"


def test_weights_lists_what_timm_has_and_whether_it_is_at_hand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["weights", "efficientnet_lite0"]) == 0
    shown = capsys.readouterr().out
    assert "1 weights for efficientnet_lite0" in shown and "124 116 104" in shown
    with pytest.raises(PipelineError, match="did you mean `efficientnet_lite0`"):
        main(["weights", "efficientnet_lite00"])
