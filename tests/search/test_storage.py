"""The journal of a search outlives kills."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState

from pipeline.core.errors import PipelineError
from pipeline.search.storage import open_storage, open_study


def test_a_half_written_last_line_is_cut_off(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    study = open_study(open_storage(None, journal))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    whole = journal.read_bytes()
    study.ask()
    journal.write_bytes(journal.read_bytes()[:-7])
    again = open_study(open_storage(None, journal))
    again.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    states = [trial.state for trial in open_study(open_storage(None, journal)).trials]
    assert states.count(TrialState.COMPLETE) == 5
    assert journal.read_bytes().startswith(whole)


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://nobody@127.0.0.1:1/none", "nonsense", "nodatabase://x/y"]
)
def test_a_database_that_cannot_be_used_is_one_sentence(tmp_path: Path, url: str) -> None:
    with pytest.raises(PipelineError, match="the database cannot be used: "):
        open_storage(url, tmp_path / "journal.log")
