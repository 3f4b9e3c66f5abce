"""A whole search on real images and a real runtime: what it tries, keeps, and never opens."""

from __future__ import annotations

import importlib.metadata
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.backends.base.registry import backend
from pipeline.cli.commands import main
from pipeline.cli.params import Params, load_params
from pipeline.core.errors import PipelineError
from pipeline.data.answers import top1
from pipeline.data.records import load_split
from pipeline.distill.student import distill_student
from pipeline.export.evaluate import logits_of
from pipeline.networks.records import STUDENTS, ModelCard
from pipeline.search import probe as probing
from pipeline.search import session, study
from pipeline.search import trials as key
from pipeline.search.records import DATA, TRIALS
from pipeline.search.session import open_search
from pipeline.search.trials import Seen
from tests.distill.conftest import teach
from tests.training.conftest import ROOT, configured, fashion, folder  # noqa: F401 - fixtures

FAST = {"arch": "lcnet_035", "args": {"global_pool": "fastavg"}, "stem_stride": 2}
LARGE = {"arch": "mobilenetv3_small_075", "args": {"global_pool": "fastavg"}, "stem_stride": 2}
LIMIT_KB = 1000
SEARCH: dict[str, Any] = {
    "target": {
        "backend": "onnxruntime", "precision": "int8", "min_top1": 0.99, "max_kb": LIMIT_KB
    },
    "budget": {"hours": 1, "trials": 4},
    "space": {"student": {"fast": FAST, "large": LARGE}, "lr": [0.004, 0.008], "epochs": [2]},
    "halving": [0.5, 1.0],
    "seeds": 2,
}  # fmt: skip


@pytest.fixture
def project(configured: Callable[..., Params]) -> Params:  # noqa: F811
    """A project with a teacher, its recorded logits, and search.yaml."""
    losses = [{"name": "kl", "weight": 1.0, "options": {"temperature": 4.0}}]
    params = configured(distill={"losses": losses})
    teach(params)
    write(SEARCH)
    return params


def write(search: dict[str, Any]) -> None:
    Path("search.yaml").write_text(yaml.safe_dump(search))


def test_a_search_rejects_untrained_trains_the_rest_and_proves_the_best(
    project: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = open_search()
    ended = list(worker.work())
    found = {seen.number: seen for seen in ended}
    standing = worker.standing()
    assert len(standing.candidates) == 4  # all points of the space
    rejected = [seen for seen in ended if seen.outcome == key.REJECTED]
    assert [seen.choice["student"] for seen in rejected] == ["large", "large"]
    assert all(f"more than {LIMIT_KB:,}" in seen.reason for seen in rejected)
    for seen in rejected:  # the catalogue knows the second one
        assert not list((TRIALS / f"{seen.number:04d}").glob("*/params.yaml"))
    best = standing.best
    assert best is not None and best.choice["student"] == "fast"
    assert standing.bounds[best.number].seeds == 2  # its own seed, and a fresh one
    (again,) = [seen for seen in ended if seen.confirms == best.number]
    assert again.seed == project.seed + 1 and found[best.number].seed == project.seed
    assert standing.met_by is None and standing.bounds[best.number].lower < 0.99

    folder = TRIALS / f"{best.number:04d}" / "2"  # noqa: F811 - of the candidate
    (model,) = folder.glob("models/compiled/onnxruntime/candidate/int8/*.onnx")
    images, labels = load_split("val")
    logits = logits_of(backend("onnxruntime").load(model, 1), images, label="val")
    assert best.value == top1(logits, labels)

    assert main(["search", "status"]) == 0
    assert main(["search", "adopt", str(best.number), "--name", "found", "--yes"]) == 0
    told = capsys.readouterr().out
    assert "Not met: the target is 0.9900, and no candidate" in told
    assert "+    found:" in told
    params = load_params()
    assert params.students.enabled[-1] == "found"
    distill_student(params, "found")
    of_trial = ModelCard.read(folder / STUDENTS / "candidate" / "card.json")
    assert ModelCard.read(STUDENTS / "found" / "card.json").weights_digest == (
        of_trial.weights_digest
    )


@pytest.mark.usefixtures("project")
def test_no_trial_can_open_the_test_split() -> None:
    worker = open_search()
    assert not [file.name for file in (DATA / "packed").iterdir() if "test" in file.name]
    with pytest.raises(PipelineError, match="test_images"):
        load_split("test", DATA / "packed")
    assert worker.manifest.final == "val"


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"space": SEARCH["space"] | {"lr": [0.004]}}, "another space"),
    ({"target": SEARCH["target"] | {"max_kb": 7}}, "another target"),
    ({"target": SEARCH["target"] | {"precision": "int7"}}, "has no `int7`"),
    ({"target": SEARCH["target"] | {"backend": "onnxrutime"}}, "did you mean `onnxruntime`"),
    (
        {"space": {"student": {"a": FAST | {"weights": "no.pth"}}}},
        "space.student.a: there is no weights file `no.pth`",
    ),
]


def test_trials_of_something_else_are_refused(project: Params) -> None:
    open_search()
    for change, said in OTHERS:
        write(SEARCH | change)
        with pytest.raises(PipelineError, match=said):
            open_search()
    write(SEARCH | {"budget": {"hours": 2}})  # more time is no other search
    open_search()
    tree = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(tree | {"seed": project.seed + 1}))
    with pytest.raises(PipelineError, match="recorded for other views"):
        open_search()


def test_a_network_without_a_tap_that_is_compared_is_refused(
    configured: Callable[..., Params],  # noqa: F811
) -> None:
    losses = [
        {"name": "cross_entropy", "weight": 1.0}, {"name": "hint", "weight": 0.1, "taps": ["late"]}
    ]  # fmt: skip
    teach(configured(distill={"losses": losses}))
    write(SEARCH)
    with pytest.raises(PipelineError, match=r"student\.fast: it has no tap `late`"):
        open_search()


@pytest.mark.usefixtures("project")
def test_a_candidate_that_was_not_trained_is_not_adopted() -> None:
    open_search()
    before = Path("params.yaml").read_text()
    with pytest.raises(PipelineError, match="no fully trained candidate 3"):
        main(["search", "adopt", "3", "--yes"])
    assert Path("params.yaml").read_text() == before


@pytest.mark.parametrize("command", [["search"], ["search", "status"], ["search", "adopt", "1"]])
def test_without_optuna_the_command_that_installs_it_is_told(
    monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    def missing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(PipelineError, match=r"optuna is not installed(?s:.*)edgestill\[search\]"):
        main(command)


@pytest.mark.usefixtures("project")
def test_a_worker_on_another_machine_trains_what_was_timed_on_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probing, "ROUNDS", 2)
    target = {"backend": "onnxruntime", "min_top1": 0.99, "max_ratio": 1000.0}
    write(SEARCH | {"target": target})
    first = open_search()
    here = first.machine
    there = here.model_copy(update={"cpu": f"not {here.cpu}"})
    monkeypatch.setattr(session, "read_fingerprint", lambda: there)
    with pytest.raises(PipelineError, match="another machine"):
        open_search()
    for name, value in (("WAIT_SECONDS", 0), ("PATIENCE", 3)):
        monkeypatch.setattr(study, name, value)
    second = open_search(new=False)
    assert not second.times
    assert list(second.work()) == [], "nothing has been timed"
    timed = next(first.work())
    known = set(Path("search/catalogue").iterdir())
    second._untimed = 0
    trained = next(second.work())
    assert trained.choice["student"] == timed.choice["student"] and trained.rungs
    assert trained.probe == timed.probe
    assert set(Path("search/catalogue").iterdir()) == known, "it timed nothing"
    assert {seen.number for seen in first.standing().candidates} == {timed.number, trained.number}


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_twenty_kills_change_nothing() -> None:
    """The same candidates with the same accuracies as undisturbed, and none of them twice."""
    undisturbed = {key_of(seen): seen.rungs for seen in open_search().work()}
    Path("search").rename("undisturbed")
    dice, kills = random.Random(0), 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "search", "--worker"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if not Path("search/journal.log").exists():
            open_search()
        try:
            _, said = process.communicate(timeout=dice.uniform(5, 15) if kills < 20 else None)
        except subprocess.TimeoutExpired:
            process.send_signal(dice.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
            process.wait()
            kills += 1
            time.sleep(0.5)
            continue
        assert process.returncode == 3, said
        break
    worker = open_search(new=False)
    seen = [Seen.of(trial) for trial in worker.study.get_trials()]
    ended = [one for one in seen if one.outcome not in (None, key.REPEATED)]
    assert {key_of(one): one.rungs for one in ended} == undisturbed
    assert len(ended) == len(undisturbed)


def key_of(seen: Seen) -> tuple[Any, ...]:
    return (*sorted(seen.choice.items()), seen.seed, seen.outcome)
