"""A bundle's README.md as the Hugging Face hub reads it; its own library is the judge."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResult
from huggingface_hub import ModelCard as HubCard

from pipeline.backends.base.artifact import BUNDLES, Artifact
from pipeline.backends.base.records import ArtifactRecord, FloatLayer, Partitions
from pipeline.bundle.model_card import Lineage, model_card
from pipeline.bundle.records import Bundle
from pipeline.bundle.write import write_bundles
from pipeline.cli.params import Params
from pipeline.compile.records import Attempt, CompiledMetrics
from pipeline.core.errors import PipelineError
from pipeline.core.records import METRICS
from pipeline.data.recall import Recall
from pipeline.data.records import PACKED, Manifest
from pipeline.distill.params import LossTerm, Rslad
from pipeline.networks.records import STUDENTS, ModelCard, Shapes
from pipeline.networks.shipped import shipped
from tests.conftest import STUDENT

NAME = f"{STUDENT}-onnxruntime-fp32"


class Records:
    """What a card is made of, as the workspace has it, with changes by record and field."""

    def __init__(self, params: Params) -> None:
        write_bundles(params)
        artifact = Artifact(STUDENT, "onnxruntime", "fp32").folder / "artifact.json"
        self.bundle = Bundle.read(BUNDLES / NAME / "bundle.json")
        self.artifact = ArtifactRecord.read(artifact)
        self.metrics = CompiledMetrics.read(Artifact(STUDENT, "onnxruntime", "fp32").metrics)
        self.manifest = Manifest.read(PACKED / "manifest.json")
        self.lineage = Lineage.read(STUDENT, params)

    def change(self, record: str, **fields: Any) -> None:
        setattr(self, record, getattr(self, record).model_copy(update=fields))

    def text(self) -> str:
        return model_card(self.bundle, self.artifact, self.metrics, self.manifest, self.lineage)

    def card(self) -> HubCard:
        return HubCard(self.text())


@pytest.fixture
def records(workspace: Params) -> Records:
    return Records(workspace)


def result(card: HubCard) -> EvalResult:
    """The one result of the one model in `model-index`."""
    (found,) = card.data.eval_results
    return found


def test_the_hub_finds_the_recorded_accuracy(records: Records) -> None:
    records.change("bundle", top1=0.875, test_images=30)
    card = records.card()
    assert card.data.model_name == NAME
    assert result(card) == EvalResult(
        task_type="image-classification", task_name="Image Classification",
        dataset_type="three-colours", dataset_name="three colours", dataset_split="test",
        dataset_args={"images": 30}, metric_type="accuracy", metric_name="Top-1",
        metric_value=0.875,
    )  # fmt: skip


def test_the_readme_of_a_bundle_is_its_card(records: Records) -> None:
    readme = (BUNDLES / NAME / "README.md").read_text()
    assert readme == records.text() and readme.startswith("---\n")
    headings = [line for line in HubCard(readme).text.splitlines() if line.startswith("## ")]
    assert headings[0] == "## Use" and headings[-1] == "## Limits"


@pytest.mark.parametrize(
    ("backend", "library", "tag"),
    [
        ("onnxruntime", "onnx", "onnx"),
        ("openvino", "openvino", "openvino"),
        ("tflite", "litert", "tflite"),
        ("tensorrt", "tensorrt", "onnx"),
        ("coreml", "coreml", "coreml"),
    ],
)
def test_the_hub_is_told_what_opens_the_file(
    records: Records, backend: str, library: str, tag: str
) -> None:
    records.change("bundle", backend=backend, install={"runtime": ("x",), "graph": ("x",)})
    data = records.card().data
    assert data.library_name == library and {library, tag, "fp32"} <= set(data.tags)
    assert data.pipeline_tag == "image-classification"


def test_core_mls_card_says_that_core_ml_has_not_run_it(records: Records) -> None:
    records.change("bundle", backend="coreml", install={"runtime": ("x",), "graph": ("y",)})
    text = " ".join(records.text().split())
    assert "**Nothing here was checked on a Mac.**" in text and "is UNCHECKED" in text
    assert "`python verify.py --graph` repeats torch's evaluation (`y`)" in text


def test_data_that_the_hub_has_is_linked(records: Records) -> None:
    assert records.card().data.datasets is None
    records.change("manifest", source="torchvision FashionMNIST")
    card = records.card()
    assert card.data.datasets == [result(card).dataset_type] == ["zalando-datasets/fashion_mnist"]


def test_a_path_on_this_machine_is_not_published(records: Records) -> None:
    records.change("manifest", source="folder /home/somebody/secret/pets")
    card = records.card()
    assert (result(card).dataset_type, result(card).dataset_name) == ("imagefolder", "folder pets")
    assert "somebody" not in card.content and "secret" not in card.content


def test_the_licence_of_the_data_is_not_called_one_of_the_weights(records: Records) -> None:
    records.change("manifest", licence="MIT, Zalando SE")
    card = records.card()
    assert card.data.license == "unknown" and card.data.get("license_name") is None
    assert "- licence of the data: MIT, Zalando SE\n" in card.text


@pytest.mark.parametrize("name", ["a: b", "--- c", "'d\" # e", "*f_g*", "日本", "- h"])
def test_names_that_yaml_or_markdown_would_read_stay_names(records: Records, name: str) -> None:
    records.change("manifest", source=f"torchvision {name}", classes=(name, "other", "third"))
    card = records.card()
    assert result(card).dataset_name == f"torchvision {name}"
    shown = name.replace("*", "\\*").replace("_", "\\_").replace("#", "\\#")
    assert f"- classes: {shown}, other, third\n" in card.text


def test_it_tells_who_taught_and_what_was_minimised(records: Records) -> None:
    lineage = records.lineage
    losses = (
        LossTerm(name="kl", weight=0.9, options={"temperature": 4.0}),
        LossTerm(name="hint", weight=0.1, taps=("late",), schedule="warmup", span=0.2),
    )
    records.lineage = Lineage(lineage.student, lineage.teachers * 2, "mean", losses)
    text = records.card().text
    assert text.count("- teacher: `resnet`, timm's resnet10t with 1,234 parameters\n") == 2
    assert "epoch 2 of 3 was the best on val" in text
    assert (
        "from the mean of these teachers: it minimised 0.9 x kl (temperature 4) + 0.1 x hint "
        "(taps late; warmup over 20% of the steps)"
    ) in text


def test_it_tells_whether_the_student_learnt_under_rounding(records: Records) -> None:
    told = "- the last 20% of its training steps computed under int8's rounding\n"
    assert told not in records.card().text
    lineage = records.lineage
    card = lineage.student.card.model_copy(update={"int8_phase": 0.2})
    records.lineage = replace(lineage, student=replace(lineage.student, card=card))
    assert told in records.card().text


def test_it_tells_how_the_student_became_robust(records: Records) -> None:
    lineage = records.lineage
    recipe = {"robust": Rslad(method="rslad").model_dump()}
    card = lineage.student.card.model_copy(update={"recipe": recipe})
    records.lineage = replace(lineage, student=replace(lineage.student, card=card))
    text = records.card().text
    assert "- learnt to be robust by RSLAD: 83% of its losses are on images attacked by 10 " in text
    assert "epoch 2 of 3 is kept\n" in text and "best on val" not in text


def test_it_tells_that_the_student_was_pruned(workspace: Params) -> None:
    """The card, weights and metrics are those of the folder that ships."""
    home = shipped(STUDENT, {STUDENT})
    shutil.copytree(STUDENTS / STUDENT, home.folder)
    shapes = Shapes(tensors={"conv_stem.weight": (8, 1, 3, 3)}, groups={})
    card = ModelCard.read(home.folder / "card.json")
    card.model_copy(update={"shapes": shapes}).write(home.folder / "card.json")
    shutil.copy(METRICS / "students" / f"{STUDENT}.json", home.metrics)
    assert "pruned" not in Records(workspace).text()
    prune = workspace.prune.model_copy(update={"enabled": (STUDENT,)})
    cut = Records(workspace.model_copy(update={"prune": prune}))
    assert "- pruned after distillation: its layers have fewer channels than timm's" in cut.text()


def test_the_float_student_and_the_teacher_stand_beside_the_artifact(records: Records) -> None:
    figures = {"top1": 0.71, "top1_drop": 0.02, "lost": 5, "won": 3, "agreement": 0.95}
    recall = Recall(images=(10, 10, 1000), right=(9, 7, 560))
    records.change("metrics", **figures, recall=recall)
    text = records.card().text
    rows = [line for line in text.splitlines() if line.startswith("| 0.")]
    assert rows == [
        "| 0.7100 | 0.5314 to 0.8409 | 0.7200 | this artifact, through onnxruntime 1.32.0 |",
        "| 0.8000 | 0.6269 to 0.9049 | 0.8000 | the float student, through torch |",
        "| 0.8000 | 0.6269 to 0.9049 | 0.8000 | the teacher `resnet` |",
    ]
    assert "on 95.00% of them; 5 right answers were lost, 3 won" in text
    lowest = text.split("The lowest recalls of this artifact:")[1].splitlines()
    assert lowest[4:6] == [
        "| blue | 1,000 | 0.5600 | 0.5291 to 0.5905 |",
        "| green | 10 | 0.7000 | 0.3968 to 0.8922 |",
    ]


def test_int8_is_told_with_what_stayed_in_float_and_how_it_was_found(records: Records) -> None:
    assert "in int8" not in records.card().text
    records.change(
        "artifact",
        precision="int8",
        quantizer="a quantizer",
        exact_input_images=64,
        execution=records.artifact.execution.model_copy(
            update={
                "macs": 1000,
                "in_float": (FloatLayer(name="stem", macs=250),),
                "per_channel": False,
                "partitions": Partitions(delegated=2, builtin={"PAD int8": 3}),
            }
        ),
    )
    tried = {"recipe": "r", "val_top1": 0.5, "val_drop": 0.0, "seconds": 1.0, "size_bytes": 1}
    ladder = (Attempt(rung="default", **tried), Attempt(rung="float_layers", kept=True, **tried))
    records.change("metrics", ladder=ladder)
    text = records.card().text
    for said in (
        "- quantized by a quantizer\n",
        "- int8 recipes tried: 2; kept: float layers\n",
        "- 75.0% of 1,000 multiply-accumulates are in int8",
        "in float: stem (250 MACs)\n",
        "- not all int8 weights have a scale per output channel\n",
        "- partitions: 2 delegated; built-in kernels: 3 PAD int8\n",
        "the same bits on 64 images\n",
    ):
        assert said in text
    assert "LP_TRANSFORMS_MODE" not in text
    records.change("artifact", backend="openvino")
    assert "- that is so on x86 CPUs alone: on others, Arm for example" in records.card().text


def test_a_backend_without_a_table_of_versions_has_none(records: Records) -> None:
    assert "| Python | verified with |\n" in records.card().text
    records.change("bundle", proven={})
    assert "verified with" not in records.card().text


def test_many_classes_are_counted(records: Records) -> None:
    records.change("manifest", classes=tuple(f"c{i}" for i in range(23)))
    text = records.card().text
    assert "c19 and 3 more\n" in text and "one of these 23 classes" in text


@pytest.mark.parametrize(
    "lost", [STUDENTS / STUDENT / "card.json", METRICS / "teachers" / "resnet.json"]
)
def test_a_record_that_is_missing_is_named(workspace: Params, lost: Path) -> None:
    lost.unlink()
    with pytest.raises(PipelineError, match="there is no Model") as caught:
        write_bundles(workspace)
    assert caught.value.where == str(lost)
