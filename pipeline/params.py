"""params.yaml as frozen, strictly checked types.

Groups are the top-level keys of the file. The chosen profile's overrides are merged over
them before anything is checked, so every other module sees plain values.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import PipelineError

PARAMS_FILE = Path("params.yaml")

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]
"""Names become parts of paths and of bundles' names S-B-P: letters, digits, `_` and `.`, no `-`."""


class Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Group):
    source: Literal["torchvision", "folder"]
    name: str = Field(description="a classification class of torchvision.datasets")
    options: dict[str, Any] = Field({}, description="further arguments of that class")
    folder: Path = Field(description="an ImageFolder, or archives that are already at hand")
    image_size: Literal["auto"] | Annotated[int, Field(ge=8, le=1024)] = "auto"
    channels: Literal["auto", 1, 3] = "auto"
    val_fraction: Annotated[float, Field(gt=0, le=0.5)]
    test_fraction: Annotated[float, Field(gt=0, le=0.5)]
    max_rejected: Fraction = Field(description="share of broken files that stops the run")
    calibration_images: Count
    limit: Count | None = Field(None, description="keep at most so many images per split")


class Augment(Group):
    """What a view of an image may differ in. Every part is drawn per sample."""

    flip: bool = Field(True, description="mirror left-right with probability 1/2")
    shift: Annotated[int, Field(ge=0)] = Field(1, description="largest shift in pixels")
    crop: Positive | None = Field(
        None, le=1, description="smallest share of the area that a random resized crop keeps"
    )
    trivial: bool = Field(False, description="TrivialAugment: one random operation an image")
    erase: Fraction = Field(0.0, description="probability of erasing a rectangle")
    mixup: Annotated[float, Field(ge=0)] = Field(0.0, description="alpha of MixUp; 0: none")
    cutmix: Annotated[float, Field(ge=0)] = Field(0.0, description="alpha of CutMix; 0: none")


class Views(Group):
    """The views of the train images that a network sees: so many epochs, so augmented."""

    epochs: Annotated[int, Field(ge=0)] = Field(description="0: the network stays as it came")
    augment: Augment = Augment()


class Training(Group):
    """How a network learns from its views."""

    batch_size: Annotated[int, Field(ge=2)] = Field(description="over all devices together")
    accumulate: Count = Field(1, description="parts that a batch is computed in, to save memory")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    optimizer: str = Field("sgd", description="a name that timm's optimizer factory knows")
    lr: Positive
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: str = Field("cosine", description="a name that timm's scheduler factory knows")
    schedule_options: dict[str, Any] = Field({}, description="further arguments of that factory")
    warmup: Fraction = Field(0.1, description="share of all steps in linear warm-up")
    label_smoothing: Fraction = 0.0
    clip_norm: Positive | None = None
    ema: Fraction | None = Field(None, description="decay of averaged weights, which then ship")
    tensorboard: bool = Field(False, description="curves for TensorBoard, too, in .work/")


HardSwish = Literal["keep", "relu6"]


class Network(Group):
    arch: str = Field(description="a timm name")
    args: dict[str, Any] = Field({}, description="further arguments of timm.create_model")
    stem_stride: Literal["auto", 1, 2] = "auto"
    stem_pool: Literal["auto"] | bool = "auto"
    hard_swish: HardSwish = Field(
        "keep", description="relu6 takes the place of every hard-swish, before training"
    )
    taps: dict[Name, str] = Field({}, description="tap name: module path in the network")


class Statistics(Group):
    mean: tuple[float, ...] = Field(description="per channel, in [0, 255]")
    std: tuple[Positive, ...] = Field(description="per channel, in [0, 255]")


class Teacher(Group):
    source: Literal["train", "checkpoint", "pretrained"]
    checkpoint: Path | None = Field(None, description="a safetensors file in `teachers.folder`")
    normalisation: Statistics | None = Field(
        None, description="of a checkpoint that has no card.json beside it"
    )
    input_size: Literal["auto"] | Annotated[int, Field(ge=8, le=1024)] = Field(
        "auto", description="pixels that images are resized to for it; auto: as the data has them"
    )
    network: Network
    views: Views
    training: Training

    @model_validator(mode="after")
    def _checkpoint_is_named(self) -> Teacher:
        if (self.source == "checkpoint") != (self.checkpoint is not None):
            raise ValueError("`checkpoint` is set exactly when `source` is `checkpoint`")
        outside = self.checkpoint and (
            self.checkpoint.is_absolute() or ".." in self.checkpoint.parts
        )
        if outside:
            raise ValueError("`checkpoint` is a path inside `teachers.folder`")
        return self


class Teachers(Group):
    """Who teaches; several teachers are one, whose logits are combined from theirs."""

    enabled: tuple[Name, ...] = Field(min_length=1)
    folder: Path = Field(description="checkpoints of your own; a change in it is noticed")
    combine: Literal["mean", "best"] = Field(
        "mean", description="of logits: weighted mean, or for each image the teacher that knows it"
    )
    weights: dict[Name, Positive] = Field({}, description="in the mean, by teacher; 1 by default")
    zoo: dict[Name, Teacher]

    @model_validator(mode="after")
    def _enabled_exist(self) -> Teachers:
        for name in self.enabled:
            if name not in self.zoo:
                raise ValueError(f"`enabled` names `{name}`{_nearest(name, self.zoo)}")
        for name in self.weights:
            if name not in self.enabled:
                raise ValueError(f"`weights` names `{name}`{_nearest(name, self.enabled)}")
        if self.weights and self.combine == "best":
            raise ValueError("`weights` belong to `combine: mean`")
        return self

    def checkpoint_file(self, name: str) -> Path | None:
        checkpoint = self.zoo[name].checkpoint
        return None if checkpoint is None else self.folder / checkpoint


class Signals(Group):
    record: bool = Field(True, description="teachers answer once for all; false: in every step")
    top_k: Count | None = Field(None, description="logits kept per image; null: all of them")


class Students(Group):
    enabled: tuple[Name, ...] = Field(min_length=1)
    zoo: dict[Name, Network]

    @model_validator(mode="after")
    def _enabled_exist(self) -> Students:
        for name in self.enabled:
            if name not in self.zoo:
                raise ValueError(f"`enabled` names `{name}`{_nearest(name, self.zoo)}")
        return self


class LossTerm(Group):
    """One summand of what a student minimises."""

    name: str
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    schedule: Literal["constant", "warmup", "decay"] = Field(
        "constant", description="of the weight: rises from 0 first, or falls to 0 last"
    )
    span: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2, description="share of all steps in which the weight rises or falls"
    )
    taps: tuple[Name, ...] = Field((), description="which taps a feature loss compares")
    teacher: Name | None = Field(None, description="whose taps; the first teacher by default")
    options: dict[str, bool | float] = {}


class Distill(Group):
    losses: tuple[LossTerm, ...] = Field(min_length=1)
    training: Training


class Export(Group):
    opset: Annotated[int, Field(ge=18, le=23)]


class OnnxRuntime(Group):
    precisions: tuple[Literal["fp32", "int8"], ...]


class OpenVino(Group):
    precisions: tuple[Literal["fp32", "int8"], ...]


class TFLite(Group):
    precisions: tuple[Literal["fp32", "fp16", "int8"], ...]
    hard_swish: Literal["decomposed", "keep"] = Field(
        "decomposed", description="how int8 computes hard-swish, for which XNNPACK has no kernel"
    )


class TensorRT(Group):
    precisions: tuple[Literal["fp16", "int8"], ...]


class Backends(Group):
    onnxruntime: OnnxRuntime
    openvino: OpenVino
    tflite: TFLite
    tensorrt: TensorRT

    def pairs(self) -> list[tuple[str, str]]:
        """Every (backend, precision) that is asked for, in the order of the file."""
        return [(name, p) for name, group in self for p in group.precisions]


class QuantizationAware(Group):
    """The last rung: the student goes on learning with int8's rounding in its forward pass."""

    epochs: Count = Field(description="of the student's views, the first ones; at most `views`")
    lr: Positive


Rung = Literal["default", "ranges", "bias_correction", "float_layers", "training"]


class Quantize(Group):
    """The ladder that an int8 artifact climbs while it loses too much."""

    max_drop: Fraction = Field(description="top-1 on val that int8 may lose to the float student")
    rungs: tuple[Rung, ...] = Field(min_length=1, description="tried in this order")
    float_layers: Count = Field(description="so many layers at most stay in float")
    float_share: Annotated[float, Field(ge=0, le=1)] = Field(
        description="of all multiply-accumulates, and of all weights, that these may hold"
    )
    training: QuantizationAware

    @model_validator(mode="after")
    def _begin_with_the_default(self) -> Quantize:
        if self.rungs[0] != "default":
            raise ValueError("`rungs` begin with `default`")
        if len(set(self.rungs)) != len(self.rungs):
            raise ValueError("`rungs` names one twice")
        return self


class Benchmark(Group):
    threads: Count
    rounds: Annotated[int, Field(ge=2)]
    extra_rounds: Annotated[int, Field(ge=0)] = Field(
        5, description="measured in place of rounds that were spoiled, at most"
    )
    min_runs: Count = Field(description="inferences per artifact and round, at least")
    min_seconds: Positive = Field(description="duration per artifact and round, at least")
    batch: Annotated[int, Field(ge=0)] = Field(
        32, description="images a call, for the throughput on all cores; 0: it is not measured"
    )


class Gate(Group):
    """The report's limits, and where `python -m pipeline gate` draws its lines."""

    max_top1_drop: Fraction = Field(description="of top-1, against the float student")
    min_agreement: Fraction = Field(description="share of its float student's answers")
    min_top1: Fraction | None = Field(None, description="on test, whatever the student reaches")
    max_p50_ms: Positive | None = Field(None, description="of the report; never kept unmeasured")
    max_kb: Positive | None = Field(
        None, description="of the report: 1000 bytes, of what a runtime opens"
    )
    max_top1_loss: Fraction = Field(0.005, description="of top-1, against the baseline")
    max_slowdown: Positive = Field(0.05, description="of a latency, relative to the baseline")
    max_slowdown_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.01, description="a smaller excess in ms is no regression, however large in relation"
    )
    between_runs: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.02, description="sd of a log latency ratio between runs whose rounds are all alike"
    )
    rerun_rounds: Annotated[int, Field(ge=3)] = Field(
        60, description="interleaved rounds of `gate --rerun`"
    )
    max_size_growth: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.02, description="relative to the baseline"
    )
    false_alarms: Annotated[float, Field(gt=0, le=0.2)] = Field(
        0.01, description="probability that a whole gate run calls chance a regression"
    )
    misses: Annotated[float, Field(gt=0, le=0.2)] = Field(
        0.05, description="probability that a slow-down of just `max_slowdown` passes"
    )
    inconclusive: Literal["pass", "fail"] = Field("fail", description="exit code 0 or 3")


class Params(Group):
    profile: str
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    data: Data
    teachers: Teachers
    students: Students
    views: Views
    signals: Signals
    distill: Distill
    export: Export
    backends: Backends
    quantize: Quantize
    benchmark: Benchmark
    gate: Gate

    @model_validator(mode="after")
    def _names_differ(self) -> Params:
        for name in self.students.enabled:
            if name in self.teachers.enabled:
                raise ValueError(f"`{name}` is both a teacher and a student; rename one")
        labelled = any(term.name == "cross_entropy" for term in self.distill.losses)
        if self.distill.training.label_smoothing and not labelled:
            raise ValueError(
                "distill.training.label_smoothing smooths `cross_entropy`, which distill.losses "
                "does not have"
            )
        if "training" in self.quantize.rungs and self.quantize.training.epochs > self.views.epochs:
            raise ValueError(
                f"quantize.training.epochs: {self.quantize.training.epochs} are more than the "
                f"{self.views.epochs} of `views`, which it goes through again"
            )
        for term in self.distill.losses:
            if term.teacher is not None and term.teacher not in self.teachers.enabled:
                raise ValueError(
                    f"distill.losses names the teacher `{term.teacher}`"
                    f"{_nearest(term.teacher, self.teachers.enabled)}"
                )
        return self


OVERRIDABLE = ("data", "teachers", "views", "distill", "quantize", "benchmark", "gate")
"""What a profile may override. dvc.yaml tracks `profiles.<profile>.<group>` of these, so a
profile names each of them (`{}` where it changes nothing). `data.folder`, the enabled
teachers and students and the backends shape the graph itself and are the same in every
profile."""


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read `path`, merge the chosen profile into it, check every value.

    Raises `PipelineError` naming every wrong key or value, where it stands, and the nearest
    known name for an unknown one.
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise PipelineError(
            "there is no such file", where=str(path), fix="run from the project's root"
        ) from None
    except yaml.YAMLError as error:
        raise PipelineError(f"not valid YAML: {error}", where=str(path)) from None
    if not isinstance(tree, dict):
        raise PipelineError("expected a mapping of groups", where=str(path))
    tree = _apply_profile(tree, path)
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(dict(item)) for item in error.errors()]
        raise PipelineError("; ".join(lines), where=str(path), fix="mend the file") from None


def _apply_profile(tree: dict[str, Any], path: Path) -> dict[str, Any]:
    tree = dict(tree)
    profiles = tree.pop("profiles", None)
    name = tree.get("profile")
    if not isinstance(profiles, dict) or not isinstance(name, str) or name not in profiles:
        raise PipelineError(
            f"profile: `{name}` is not in `profiles`{_nearest(str(name), profiles or {})}",
            where=str(path),
        )
    overrides = profiles[name] or {}
    for group in overrides:
        if group not in OVERRIDABLE:
            raise PipelineError(
                f"profiles.{name}.{group}: a profile cannot override this"
                f"{_nearest(group, OVERRIDABLE)}",
                where=str(path),
                fix=f"overridable are {', '.join(OVERRIDABLE)}",
            )
    for group in OVERRIDABLE:
        if group not in overrides:
            raise PipelineError(
                f"profiles.{name}.{group} is missing", where=str(path), fix=f"write `{group}: {{}}`"
            )
    if "folder" in (overrides["data"] or {}):
        raise PipelineError(
            f"profiles.{name}.data.folder: the folder is a dependency in dvc.yaml",
            where=str(path),
            fix="set data.folder instead",
        )
    for key in ("enabled", "folder"):
        if key in (overrides["teachers"] or {}):
            raise PipelineError(
                f"profiles.{name}.teachers.{key}: it shapes the graph in dvc.yaml",
                where=str(path),
                fix=f"set teachers.{key} instead",
            )
    return _merge(tree, overrides)


def _merge(base: dict[str, Any], over: dict[str, Any] | None) -> dict[str, Any]:
    merged = dict(base)
    for key, value in (over or {}).items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _explain(error: dict[str, Any]) -> str:
    """One pydantic error as `group.key: what is wrong`, with the nearest known name."""
    keys = [str(part) for part in error["loc"]]
    where = ".".join(keys)
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key{_nearest(keys[-1], _known_keys(error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"{where}: missing"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f" (found {given!r})" if not isinstance(given, dict | BaseModel) else ""
    return f"{where}: {message[0].lower()}{message[1:]}{shown}"


def _known_keys(loc: tuple[Any, ...]) -> list[str]:
    """Field names of the group at `loc`, found by walking the annotations."""
    group: Any = Params
    for part in loc:
        if isinstance(group, type) and issubclass(group, Group) and part in group.model_fields:
            group = group.model_fields[part].annotation
        else:  # an item of a dict or a tuple: its value type is the group inside
            inner = [arg for arg in get_args(group) if isinstance(arg, type)]
            group = next((arg for arg in inner if issubclass(arg, Group)), None)
    if isinstance(group, type) and issubclass(group, Group):
        return list(group.model_fields)
    return []


def _nearest(name: str, known: Any) -> str:
    """`; did you mean ...?` or the list of what is known."""
    known = [str(item) for item in known]
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known are {', '.join(known)}" if known else ""
