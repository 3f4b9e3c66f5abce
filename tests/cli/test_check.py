"""`python -m pipeline check`: what would fail after an hour fails at once."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.backends.openvino.spec import OpenVino
from pipeline.cli.check import check, check_lock
from pipeline.cli.commands import main
from pipeline.cli.params import Params, load_params
from pipeline.core.errors import PipelineError

SHIPPED = Path(__file__).parents[2] / "params.yaml"
TREE = yaml.safe_load(SHIPPED.read_text())
TRAINING = TREE["distill"]["training"]
MISSING = TREE["teachers"]["zoo"]["resnet"] | {
    "network": {"arch": "resnet10t", "weights": "none.pth"}
}
MIXED = TREE["teachers"]["zoo"]["resnet"] | {"views": {"augment": {"mixup": 0.2}}}
EARLY = {"name": "hint", "weight": 1, "taps": ["early"]}
OWN = {"arch": "resnet10t", "recipe": {"losses": [{"name": "kll", "weight": 1}]}}
EARLY_OWN = {
    "arch": "resnet10t",
    "recipe": {"losses": [{"name": "cross_entropy", "weight": 1}, EARLY]},
}
LABELS = [{"name": "cross_entropy", "weight": 1}]
ROBUST = {"arch": "resnet10t", "recipe": {"robust": {"method": "rslad"}}}
HEADLESS = {"features_only": True}


def params(folder: Path, **groups: dict[str, Any]) -> Params:
    tree = deepcopy(TREE)
    for group, changes in groups.items():
        tree[group] |= changes
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))
    return load_params(folder / "params.yaml")


@pytest.mark.parametrize("profile", ["cpu", "long", "gpu", "smoke"])
def test_what_is_shipped_is_right(tmp_path: Path, profile: str) -> None:
    tree = TREE | {"profile": profile}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    check(load_params(tmp_path / "params.yaml"))


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"data": {"source": "folder", "folder": "/nowhere"}}, "there is no such folder"),
        (
            {"data": {"unlabelled": "/nowhere"}},
            "data.unlabelled: /nowhere: there is no such folder",
        ),
        (
            {"data": {"labels": 9}, "teachers": {"zoo": {"resnet": MIXED}}},
            "leave out `mixup` and `cutmix`, or set `unlabelled: 0`",
        ),
        ({"data": {"source": "foldr"}}, "no `foldr` among the sources; did you mean `folder`"),
        (
            {"distill": {"losses": [{"name": "kll", "weight": 1}]}},
            "no `kll` among the losses; did you mean `kl`",
        ),
        (
            {"students": {"enabled": ["a"], "zoo": {"a": OWN}}},
            r"students.zoo.a.recipe.losses: there is no `kll`",
        ),
        (
            {"students": {"enabled": ["a"], "zoo": {"a": EARLY_OWN}}},
            r"students.zoo.a.recipe.losses: the student has no tap `early`",
        ),
        (
            {"distill": {"losses": LABELS, "robust": {"method": "rslad"}}},
            r"distill.robust: RSLAD attacks what the teachers answer, .* \(found cross_entropy\)",
        ),
        (
            {"distill": {"losses": LABELS}, "students": {"enabled": ["a"], "zoo": {"a": ROBUST}}},
            r"students.zoo.a.recipe.robust: RSLAD attacks what the teachers answer",
        ),
        (
            {"quantize": {"rungs": ["default", "float_layer"]}},
            "no `float_layer` among the rungs; did you mean `float_layers`",
        ),
        (
            {"quantize": {"rungs": ["default", "prayer"]}},
            "no `prayer` among the rungs; known are bias_correction, default, float_layers, ",
        ),
        (
            {"backends": {"enabled": ["onnxruntime", "opnvino"]}},
            "no `opnvino` among the backends; did you mean `openvino`",
        ),
        ({"gate": {"max_slowdwn": 1}}, "gate.max_slowdwn: unknown key; did you mean"),
        (
            {"distill": {"losses": [{"name": "cross_entropy", "weight": 1}, EARLY]}},
            "the student has no tap `early`",
        ),
        (
            {"students": {"enabled": ["a"], "zoo": {"a": {"arch": "vit_tiny_patch16_224"}}}},
            "a vision transformer needs `img_size`",
        ),
        (
            {"students": {"enabled": ["a"], "zoo": {"a": {"arch": "resnet10t", "args": HEADLESS}}}},
            "does not give one logit per class",
        ),
        ({"distill": {"training": TRAINING | {"optimizer": "adamww"}}}, "no optimizer `adamww`"),
        ({"distill": {"training": TRAINING | {"optimizer": "adahessian"}}}, "second derivatives"),
        ({"distill": {"training": TRAINING | {"schedule": "cosin"}}}, "schedule `cosin`"),
        ({"distill": {"training": TRAINING | {"precision": "fp16"}}}, "training needs a GPU"),
        ({"distill": {"training": {"batch_size": 128, "accumulate": 3}}}, "cannot be divided"),
        (
            {"distill": {"training": {"batch_size": 128, "accumulate": 128}}},
            "is one image at a time",
        ),
        (
            {
                "distill": {
                    "losses": [{"name": "kl", "weight": 1}, {"name": "dist", "weight": 1}],
                    "training": {"batch_size": 128, "accumulate": 2},
                }
            },
            "`dist` compares the samples of a batch",
        ),
        ({"teachers": {"zoo": {"resnet": MISSING}}}, "there is no such weights file"),
        (
            {"students": {"enabled": ["a"], "zoo": {"a": {"arch": "mobilenetv9"}}}},
            "has no network `mobilenetv9`",
        ),
    ],
)
def test_a_mistake_is_found_before_anything_is_computed(
    tmp_path: Path, groups: dict[str, dict[str, Any]], said: str
) -> None:
    with pytest.raises(PipelineError, match=said):
        check(params(tmp_path, **groups))


@pytest.mark.filterwarnings("ignore")
def test_with_export_each_backend_of_each_student_is_tried_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its position encoding is resampled in each inference, which LiteRT cannot do."""
    args = {
        "img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2,
        "reg_tokens": 1, "dynamic_img_size": True, "global_pool": "avg",
    }  # fmt: skip
    params(
        tmp_path,
        data={"image_size": 16, "channels": 1},
        students={
            "enabled": ["mine"], "zoo": {"mine": {"arch": "vit_tiny_patch16_224", "args": args}}
        },
        backends={
            "enabled": ["tflite", "onnxruntime"],
            "tflite": {"precisions": ["fp32"]}, "onnxruntime": {"precisions": ["fp32", "int8"]},
        },
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--export"]) == 1
    found = capsys.readouterr()
    assert found.out.splitlines()[1:] == [
        "untrained students, images of 16 px in 1 channel(s):",
        "mine: export", "mine: LiteRT, fp32", "mine: ONNX Runtime, fp32, int8",
    ]  # fmt: skip
    assert [line for line in found.err.splitlines() if line.startswith("error")] == [
        "error: compile of mine/tflite/fp32: litert-torch refuses the network: "
        "Lowering not found: aten._upsample_bicubic2d_aa.default"
    ]
    assert "leave `tflite` out of `backends.enabled`, or choose another student" in found.err
    assert [file.name for file in tmp_path.iterdir()] == ["params.yaml"]


def test_a_backend_whose_package_is_missing_is_named_unless_it_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVino, "packages", ("openvino", "no-such-package"))
    with pytest.raises(PipelineError, match="no-such-package is not installed"):
        check(params(tmp_path))
    others = [name for name in TREE["backends"]["enabled"] if name != "openvino"]
    check(params(tmp_path, backends={"enabled": others}))


def test_a_lock_that_dvc_was_killed_in_is_told(tmp_path: Path) -> None:
    file = tmp_path / "dvc.lock"
    check_lock(file)
    whole = (Path(__file__).parents[2] / "dvc.lock").read_text()
    file.write_text(whole)
    check_lock(file)
    within_a_line = whole.index("weights") + 7
    after_a_name = whole.index("cmd:")  # sound YAML, which DVC refuses
    for cut in within_a_line, after_a_name:
        file.write_text(whole[:cut])
        with pytest.raises(PipelineError, match="half-written: DVC was killed") as told:
            check_lock(file)
    assert told.value.fix is not None and "git checkout" in told.value.fix
    running = tmp_path / "rwlock"
    running.write_text('{"data/raw": {"write": ')
    with pytest.raises(PipelineError, match="rwlock: is half-written"):
        check_lock(tmp_path / "missing", running)
    running.write_text("{}")
    check_lock(tmp_path / "missing", running)
