"""The files that stages hand to each other: one type, one writer and one reader each.

Every record is a frozen model with strict keys. Accuracies and shares are fractions in
[0, 1], latencies milliseconds, sizes bytes, digests SHA-256 in hexadecimal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import PipelineError
from pipeline.files import sha256, write_whole

RAW = Path("data/raw")
PACKED = Path("data/packed")
CALIBRATION = Path("data/calibration")
CARD = "card.json"
"""Beside the weights of every teacher and student: a `ModelCard`."""
TEACHERS = Path("models/teachers")
SIGNALS = Path("models/teacher_signals")
STUDENTS = Path("models/students")
ONNX = Path("models/onnx")
COMPILED = Path("models/compiled")
BUNDLES = Path("models/bundles")
METRICS = Path("metrics")
COMPILED_METRICS = METRICS / "compiled"
CURVES = METRICS / "curves"
REPORTS = Path("reports")
FINGERPRINT = METRICS / "fingerprint.json"
BENCHMARK = METRICS / "benchmark.json"
REFERENCE = "reference"
"""What the frozen reference model is called among the artifacts `S/B/P`."""

LATENCIES = Path("models/benchmark/latencies.npz")
"""Single latencies by `S/B/P` and `reference`: `KEY/ns`, int64 [n], `KEY/round`, int32 [n]."""

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def write(self, path: Path) -> None:
        """Write as indented JSON with a final newline; the file appears whole."""
        write_whole(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote; raise `PipelineError` for a missing or foreign file."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise PipelineError(
                f"there is no {cls.__name__} record", where=str(path), fix="run `dvc repro`"
            ) from None
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: bytes, where: str) -> Self:
        """The record in `content`, a file's bytes; `PipelineError` naming `where` if foreign."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise PipelineError(
                f"not a {cls.__name__} record: {error.errors()[0]['msg']}",
                where=where,
                fix="remove it and run `dvc repro`",
            ) from None


class Rejected(Record):
    file: str
    reason: str


class Manifest(Record):
    """data/packed/manifest.json. Images are uint8 [N, H, W, C]; labels int64 [N]."""

    source: str
    licence: str
    classes: tuple[str, ...]
    image_size: int
    channels: int
    counts: dict[Split, dict[str, int]] = Field(description="images per split and class")
    digests: dict[str, str] = Field(description="SHA-256 of each array file, by file name")
    calibration_digest: str
    mean: tuple[float, ...] = Field(description="of the train split per channel, in [0, 255]")
    std: tuple[float, ...] = Field(description="of the train split per channel, in [0, 255]")
    rejected: tuple[Rejected, ...]
    warnings: tuple[str, ...] = Field((), description="suspicious, but not fatal, findings")

    def size(self, split: Split) -> int:
        return sum(self.counts[split].values())


class Normalisation(Record):
    """x_normalised = (x - mean) / std per channel, x in [0, 255]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class ModelCard(Record):
    """models/teachers/T/card.json and models/students/S/card.json."""

    arch: str
    args: dict[str, Any]
    stem_stride: Literal["auto", 1, 2]
    stem_pool: Literal["auto"] | bool
    hard_swish: Literal["keep", "relu6"] = "keep"
    image_size: int = Field(description="of the data, in pixels")
    input_size: int = Field(description="that the network sees; other images are resized to it")
    channels: int
    classes: tuple[str, ...]
    normalisation: Normalisation
    parameters: int
    seed: int
    epochs: int
    best_epoch: int
    val_top1: float
    quantization_aware: bool = Field(
        False, description="`epochs`, `best_epoch`, `val_top1`: of its training in int8's rounding"
    )
    data_digest: str = Field(description="SHA-256 of the packed train images")
    versions: dict[str, str]


class ModelMetrics(Record):
    """metrics/teachers/T.json and metrics/students/S.json: the float network in torch."""

    val_top1: float
    test_top1: float
    parameters: int


class SignalsRecord(Record):
    """models/teacher_signals/signals.json: whose logits lie beside it, and for which views."""

    teachers: dict[str, str] = Field(
        description="by teacher, in order: SHA-256 of its weights and card"
    )
    views: str = Field(description="digest of the images, the augmentation, its seed and code")
    epochs: int
    samples: int
    classes: int
    top_k: int | None


class Epoch(Record):
    """One point of the training curves that DVCLive keeps in metrics/curves/NAME/."""

    train_loss: float
    val_loss: float
    val_top1: float
    lr: float


class Parity(Record):
    """models/onnx/S/parity.json: ONNX Runtime against torch, the whole test split."""

    images: int
    torch_top1: float
    onnx_top1: float
    same_argmax: float
    max_logit_error: float
    mean_logit_error: float
    opset: int
    versions: dict[str, str]


class ProductLayer(Record):
    """A convolution or linear layer of a student."""

    name: str = Field(description="path of the module in the network")
    macs: int = Field(description="multiply-accumulates for one image")
    weights: int


class ProductLayers(Record):
    """models/onnx/S/layers.json: a student's convolutions and linear layers."""

    layers: tuple[ProductLayer, ...] = Field(description="in order of execution")


class FloatProduct(Record):
    """A convolution or matrix product that is not computed in int8."""

    name: str = Field(description="the runtime's own")
    macs: int

    def __str__(self) -> str:
        """The end of the name, where long ones differ, and the multiply-accumulates."""
        name = self.name if len(self.name) <= 60 else f"…{self.name[-59:]}"
        return f"{name} ({self.macs:,} MACs)"


class Partitions(Record):
    """How LiteRT shares a graph between a delegate and its built-in kernels."""

    delegated: int = Field(description="partitions that the delegate runs")
    builtin: dict[str, int] = Field(description="operators left to built-in kernels, by kind")


class Proof(Record):
    """How an artifact computes one image, read from what its runtime executes.

    Only convolutions and matrix products have multiply-accumulates (MACs): output elements
    times kernel elements of one output channel, or times the inner dimension.
    """

    macs: int
    float_products: tuple[FloatProduct, ...] = Field(description="the largest first")
    per_channel: bool | None = Field(
        description="all int8 weights have a scale per output channel; null without such weights"
    )
    partitions: Partitions | None = Field(description="null where the runtime has none")
    input_type: str
    output_type: str

    @property
    def int8_mac_share(self) -> float:
        """Share of multiply-accumulates in int8; 0 for a network without any."""
        inexact = sum(product.macs for product in self.float_products)
        return (self.macs - inexact) / self.macs if self.macs else 0.0


class Artifact(Record):
    """models/compiled/B/S/P/artifact.json."""

    student: str
    backend: str
    precision: str
    model_file: str = Field(description="the file that `load` opens, in the same folder")
    quantizer: str | None = Field(description="tool and setting; null for float precisions")
    calibration_digest: str | None
    input: str = "image: uint8 [N, H, W, C], raw pixels in [0, 255]"
    output: str = "logits: float32 [N, classes]"
    image_size: int
    channels: int
    classes: tuple[str, ...]
    proof: Proof
    exact_input_images: int | None = Field(
        None,
        description="images whose logits are the same bits for pixels x and for (x - 128) / 64 in "
        "float; null for float precisions",
    )
    versions: dict[str, str]
    digests: dict[str, str] = Field(description="SHA-256 of every other file in the folder")
    notes: tuple[str, ...] = ()

    @classmethod
    def read_whole(cls, folder: Path) -> Self:
        """The record in a compiled folder; `PipelineError` unless its files are as compiled."""
        artifact = cls.read(folder / "artifact.json")
        for file, digest in artifact.digests.items():
            if not (folder / file).is_file() or sha256(folder / file) != digest:
                raise PipelineError(
                    "is missing or not the file that was compiled",
                    where=str(folder / file),
                    fix="`dvc checkout` brings it back, `dvc repro` makes it anew",
                )
        return artifact


class Attempt(Record):
    """An int8 artifact that the recovery ladder tried."""

    rung: str
    recipe: str
    val_top1: float | None = Field(description="through the runtime itself; null if it failed")
    val_drop: float | None = Field(description="val top-1 of the float student, minus `val_top1`")
    seconds: float = Field(description="to make and to judge it")
    size_bytes: int | None
    failure: str | None = None
    kept: bool = False


class LayerNoise(Record):
    """How far int8 takes the output of a convolution or product from the float student's."""

    name: str = Field(description="of the module in the student")
    snr_db: float | None = Field(description="signal to noise in dB; null where both are equal")


class ReliabilityBin(Record):
    """Images whose most probable class has a probability in one of equal parts of [0, 1]."""

    images: int
    confidence: float = Field(description="mean of these probabilities")
    accuracy: float = Field(description="share of right answers")


class Mistake(Record):
    """A test image with a wrong answer; classes are places in the manifest's."""

    image: int
    label: int
    answer: int
    probability: float = Field(description="that the softmax gives to `answer`")


class CompiledMetrics(Record):
    """metrics/compiled/B/S/P.json: the whole test split through `evaluated_with`."""

    top1: float
    top1_drop: float = Field(description="top-1 of the float student in torch, minus `top1`")
    agreement: float = Field(description="share of images with the argmax of the float student")
    lost: int = Field(description="images that only the float student gets right")
    won: int = Field(description="images that only the artifact gets right")
    max_logit_error: float
    mean_logit_error: float
    snr_db: float | None = Field(description="of the logits, in dB; null where they are equal")
    images: int
    size_bytes: int
    int8_mac_share: float
    evaluated_with: str = Field(description="the runtime and version that gave the answers")
    ships_with: str = Field(description="the runtime that the artifact is made for")
    ladder: tuple[Attempt, ...] = Field((), description="of int8, in order; one of them is kept")
    layers: tuple[LayerNoise, ...] = Field((), description="of int8, in order of execution, on val")


class Latency(Record):
    """Milliseconds per single inference, from raw pixels to logits."""

    p50: float
    p90: float
    p99: float


class Throughput(Record):
    """Many images a call, on all cores."""

    images_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        description="median over rounds"
    )
    batch: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]


class WarmUp(Record):
    """What went before the first timed inference, the very first one apart."""

    inferences: Annotated[int, Field(ge=1)]
    steady: bool = Field(description="the medians of its last windows agreed")


class BenchmarkRow(Record):
    status: Literal["measured", "not_measured", "failed"]
    reason: str | None = None
    latency_ms: Latency | None = None
    p90_interval_ms: tuple[float, float] | None = Field(
        None, description="95% limits of p90: bootstrap of whole rounds; null of fewer than five"
    )
    ratio_to_reference: float | None = Field(None, description="median of p50 ratios by round")
    ratio_interval: tuple[float, float] | None = Field(
        None, description="95% limits of the ratio: bootstrap over rounds"
    )
    first_ms: float | None = None
    load_ms: float | None = None
    warm_up: WarmUp | None = None
    peak_rss_bytes: int | None = None
    throughput: Throughput | None = None
    throughput_reason: str | None = Field(None, description="why there is none beside a latency")
    threads: int
    cpus: tuple[int, ...] | None = Field(
        None, description="to which its process was kept; null: the system has no call for it"
    )
    n: int = 0
    rounds_ms: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        (), description="p50 of each interleaved round, in order; the reference's are as many"
    )


class Fingerprint(Record):
    """metrics/fingerprint.json: what latencies depend on, and nothing that varies by itself."""

    cpu: str
    architecture: str
    instruction_sets: tuple[str, ...]
    cores: int
    memory_gib: int
    kernel: str
    governor: str | None
    accelerators: tuple[str, ...]
    runtimes: dict[str, str]


class Conditions(Record):
    """What else went on during one interleaved round; null where the system does not tell."""

    seconds: float
    others: float | None = Field(
        None, description="share of the measuring cores' time that other processes took"
    )
    stolen: float | None = Field(
        None, description="share of the measuring cores' time that the hypervisor gave away"
    )
    elsewhere: float | None = Field(
        None, description="share of the other usable cores' time that others took"
    )
    mhz: float | None = Field(
        None, description="of the slowest measuring core, its median clock over the round"
    )
    celsius: float | None = Field(None, description="highest temperature")
    load_average: float | None = Field(None, description="of one minute, when the round ended")
    spoiled: str | None = Field(None, description="why; null: it is not")
    kept: bool = Field(True, description="it is among the rounds of the rows")


class BenchmarkRecord(Record):
    """metrics/benchmark.json; rows by `S/B/P`."""

    fingerprint: Fingerprint
    reference: BenchmarkRow
    reference_digest: str
    overhead_ns: int | None = Field(None, description="what the harness itself adds to a latency")
    conditions: tuple[Conditions, ...] = Field(
        (), description="one for each round, in order; those that are kept make up `rounds_ms`"
    )
    repeated_rounds: int = Field(0, description="measured because others were spoiled")
    rows: dict[str, BenchmarkRow]


def bundle_folder(student: str, backend: str, precision: str) -> Path:
    return BUNDLES / f"{student}-{backend}-{precision}"


def artifact_folder(student: str, backend: str, precision: str) -> Path:
    return COMPILED / backend / student / precision


def compiled_metrics_file(student: str, backend: str, precision: str) -> Path:
    return COMPILED_METRICS / backend / student / f"{precision}.json"


def load_split(split: Split, folder: Path = PACKED) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 [N, H, W, C] (memory-mapped, read-only) and labels int64 [N] of a split."""
    files = [folder / f"{split}_{part}.npy" for part in ("images", "labels")]
    for file in files:
        if not file.exists():
            raise PipelineError("the array is missing", where=str(file), fix="run `dvc repro`")
    return np.load(files[0], mmap_mode="r"), np.load(files[1])


def load_calibration(folder: Path = CALIBRATION) -> NDArray[np.uint8]:
    """The one calibration set, uint8 [N, H, W, C], from the train split."""
    images: NDArray[np.uint8] = np.load(folder / "images.npy")
    return images


def read_curve(name: str, folder: Path = CURVES) -> tuple[Epoch, ...]:
    """The training curve of a teacher or a student, from DVCLive's tab-separated files."""
    plots = folder / name / "plots" / "metrics"
    columns: dict[str, list[str]] = {}
    for field in Epoch.model_fields:
        file = plots / f"{field}.tsv"
        if not file.exists():
            raise PipelineError("the curve is missing", where=str(file), fix="run `dvc repro`")
        columns[field] = [line.split("\t")[1] for line in file.read_text().splitlines()[1:]]
    rows = zip(*columns.values(), strict=True)
    return tuple(Epoch.model_validate(dict(zip(columns, row, strict=True))) for row in rows)
