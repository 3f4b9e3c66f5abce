"""A classifier that is fitted on frozen features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.data.answers import top1
from pipeline.networks.inference import predict
from pipeline.networks.params import Network
from pipeline.training.head import fit_classifier
from tests.training.conftest import RESNET, TRAINING, model, run, same, split, weights


def test_the_fitted_classifier_is_what_the_network_answers_and_the_backbone_stays() -> None:
    network = model(RESNET)
    before, val = weights(network), split(2)
    found = fit_classifier(network, split(1), val, flip=True, name="net")
    assert found == top1(predict(network, val[0]).numpy(), val[1]) > 0.9
    after = weights(network)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"network.fc.weight", "network.fc.bias"}
    assert network.training


def test_it_minimises_the_penalised_cross_entropy() -> None:
    """At the minimum the gradient of the loss over standardised features is zero."""
    network = model(RESNET)
    images, labels = split(1)
    fit_classifier(network, (images, labels), split(2), flip=False, name="net")
    layer = network.network.fc
    assert isinstance(layer, nn.Linear)
    features: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    logits = predict(network, images)
    known = torch.cat(features)
    probabilities = logits.softmax(1)
    wanted = nn.functional.one_hot(torch.from_numpy(labels), 2)
    scale = known.std(0).clamp_min(1e-6)
    standard = (known - known.mean(0)) / scale
    weight = layer.weight.detach() * scale
    slope = (probabilities - wanted).T @ standard / len(labels)
    ratios = [
        (slope + 2 * penalty * weight).abs().max().item() for penalty in (1e-4, 1e-3, 1e-2, 1e-1)
    ]
    assert min(ratios) < 1e-3


def test_a_run_keeps_the_fitted_classifier_where_no_epoch_is_better(folder: Path) -> None:
    del folder
    start = TRAINING.model_copy(update={"freeze": "head_first", "lr": 1e-9, "warmup": 0.0})
    network = model(RESNET)
    fitted = run(network, "a", start, epochs=1)
    assert fitted.best_epoch in (0, 1) and fitted.val_top1 > 0.9
    alone = model(RESNET)
    probe = run(alone, "b", TRAINING.model_copy(update={"freeze": "backbone"}), epochs=3)
    assert probe.best_epoch == 0 and probe.val_top1 > 0.9
    ruined = TRAINING.model_copy(update={"freeze": "head_first", "lr": 1e-30, "clip_norm": 1e-9})
    third = model(RESNET)
    assert run(third, "c", ruined, epochs=1).val_top1 >= probe.val_top1
    if fitted.best_epoch == 0:
        assert same(weights(network), weights(alone))


def test_early_layers_learn_slower(folder: Path) -> None:
    del folder
    even, decayed = model(RESNET), model(RESNET)
    before = weights(even)
    run(even, "a", TRAINING.model_copy(update={"optimizer": "adamw", "lr": 0.001}), epochs=1)
    slower = {"optimizer": "adamw", "lr": 0.001, "layer_decay": 0.3}
    run(decayed, "b", TRAINING.model_copy(update=slower), epochs=1)

    def moved(name: str) -> float:
        shares = [(weights(net)[name] - before[name]).norm().item() for net in (decayed, even)]
        return shares[0] / shares[1]

    assert moved("network.conv1.0.weight") < 0.1 < 0.6 < moved("network.fc.weight")


def test_a_classifier_that_is_not_linear_is_refused() -> None:
    network = model(Network(arch="test_byobnet"))
    network.network.pretrained_cfg["classifier"] = "stem"  # type: ignore[index, operator]
    with pytest.raises(PipelineError, match="not one linear layer"):
        fit_classifier(network, split(1), split(2), flip=False, name="net")
    assert np.isfinite(predict(network, split(2)[0]).numpy()).all()
