"""The loop: same bits from the same seed, also across a stop; mistakes end it early."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.contracts import read_curve
from pipeline.distill import training as room
from pipeline.distill.objective import Distillation, Supervised
from pipeline.distill.training import fit, lr_factor
from pipeline.errors import PipelineError
from pipeline.networks.build import PixelsToLogits, build_network, student_normalisation
from pipeline.networks.inference import evaluate, seed_everything
from pipeline.params import LossTerm, Network, Training

TINY = Network(arch="mobilenetv3_small_050", taps={"late": "blocks.3"})
RESNET = Network(arch="resnet10t", args={"channels": [8, 8, 16, 16]}, taps={"late": "layer3"})
TRAINING = Training(epochs=3, batch_size=16, lr=0.05, weight_decay=0.0001, optimizer="sgd")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DVCLive and checkpoints write below the working directory."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def split(seed: int, n: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright upper or a bright lower half, which flips keep: learnt quickly."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n)
    images = random.integers(0, 100, (n, 16, 16, 1))
    images[labels == 0, :8] += 120
    images[labels == 1, 8:] += 120
    return images.astype(np.uint8), labels.astype(np.int64)


def model(network: Network = TINY, seed: int = 3) -> PixelsToLogits:
    seed_everything(seed)
    built = build_network(network, classes=2, channels=1, image_size=16)
    return PixelsToLogits(built, student_normalisation(1))


def weights(of: PixelsToLogits) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in of.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def run(of: PixelsToLogits, key: str, training: Training = TRAINING) -> room.Fitted:
    return fit(Supervised(of, 0.0), split(1), split(2), training, seed=5, key=key, name="teacher")


def test_training_learns_and_the_same_seed_gives_the_same_bits() -> None:
    one, two = model(RESNET), model(RESNET)
    fitted = run(one, "a")
    run(two, "b")
    assert same(weights(one), weights(two))
    assert fitted.val_top1 > 0.9
    assert evaluate(one, *split(2))[1] == pytest.approx(fitted.val_top1)


def test_a_stopped_run_goes_on_and_ends_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undisturbed, stopped = model(), model()
    run(undisturbed, "a")
    curve = read_curve("teacher")
    real = room._train_epoch
    calls = []

    def stop_in_second_epoch(*arguments: object) -> float:
        calls.append(arguments[6])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "_train_epoch", stop_in_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, "b")
    again = model(seed=99)  # everything comes from the checkpoint
    run(again, "b")
    assert calls == [0, 1, 1, 2]
    assert same(weights(undisturbed), weights(again))
    assert read_curve("teacher") == curve


def test_the_best_epoch_on_val_is_kept() -> None:
    of = model()
    fitted = run(of, "a")
    assert fitted.val_top1 == max(row.val_top1 for row in read_curve("teacher"))
    assert evaluate(of, *split(2))[1] == pytest.approx(fitted.val_top1)


def test_no_epochs_leave_the_network_as_it_came() -> None:
    of = model()
    before = weights(of)
    fitted = run(of, "a", TRAINING.model_copy(update={"epochs": 0}))
    assert same(before, weights(of)) and fitted.best_epoch == 0
    assert len(read_curve("teacher")) == 1


def test_a_diverging_run_stops_with_advice() -> None:
    with pytest.raises(PipelineError, match="lower `lr`"):
        run(model(), "a", TRAINING.model_copy(update={"lr": 1e30}))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(PipelineError, match="lower `batch_size`"):
        run(model(), "a", TRAINING.model_copy(update={"batch_size": 97}))


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(PipelineError, match="no optimizer `sgdd`"):
        run(model(), "a", TRAINING.model_copy(update={"optimizer": "sgdd"}))


def test_lr_rises_linearly_then_falls_as_a_half_cosine() -> None:
    factors = [lr_factor(step, 100, 0.2) for step in range(101)]
    assert np.allclose(np.diff(factors[:20]), 1 / 21)
    assert factors[20] == pytest.approx(1.0) and factors[60] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0) and max(factors) <= 1.0
    assert lr_factor(70, 100, 0.2) == pytest.approx(0.5 * (1 + math.cos(math.pi * 50 / 80)))


TERMS = (
    LossTerm(name="kl", weight=0.9, options={"temperature": 4.0}),
    LossTerm(name="cross_entropy", weight=0.1),
    LossTerm(name="hint", weight=0.5, tap="late"),
    LossTerm(name="attention_transfer", weight=5.0, tap="late"),
)


def distillation(
    terms: tuple[LossTerm, ...] = TERMS, student: PixelsToLogits | None = None
) -> Distillation:
    pixels = torch.from_numpy(split(1)[0][:1])
    return Distillation(
        student or model(), model(RESNET, seed=8), terms, TINY.taps, RESNET.taps, pixels
    )


def test_distillation_is_the_weighted_sum_of_its_terms() -> None:
    pixels, labels = (torch.from_numpy(part[:8]) for part in split(1))
    whole = distillation().eval()
    parts = [distillation((term,)).eval() for term in TERMS]
    parts[2].adapters.load_state_dict(
        {k.replace("2", "0", 1): v for k, v in whole.adapters.state_dict().items()}
    )
    with torch.no_grad():
        total = whole(pixels, labels)
        torch.testing.assert_close(total, sum(part(pixels, labels) for part in parts))


def test_distillation_trains_student_and_adapters_but_never_the_teacher() -> None:
    student = model()
    objective = distillation(student=student)
    teacher = objective._teacher[0]
    before, adapters = weights(teacher), objective.adapters.state_dict()
    adapters = {name: tensor.clone() for name, tensor in adapters.items()}
    start = weights(student)
    fit(objective, split(1), split(2), TRAINING, seed=5, key="d", name="student")
    assert same(before, weights(teacher)) and not teacher.training
    assert not same(start, weights(student))
    assert not torch.equal(
        adapters["2.project.weight"], objective.adapters.state_dict()["2.project.weight"]
    )
    assert not any("adapter" in name for name in student.state_dict())


def test_a_wrong_tap_fails_before_training_and_shows_near_names() -> None:
    with pytest.raises(PipelineError, match=r"no module `blocks\.33`; near are blocks\.3"):
        Distillation(
            model(),
            model(RESNET),
            TERMS,
            {"late": "blocks.33"},
            RESNET.taps,
            torch.from_numpy(split(1)[0][:1]),
        )


def test_a_tap_that_is_no_feature_map_is_refused() -> None:
    with pytest.raises(PipelineError, match="a feature map is"):
        Distillation(
            model(),
            model(RESNET),
            TERMS,
            {"late": "classifier"},
            RESNET.taps,
            torch.from_numpy(split(1)[0][:1]),
        )
