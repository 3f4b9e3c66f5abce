"""The gate as a pull request meets it: a repository, its base, and branches that changed it.

Nothing is trained here: every revision has its records committed, and the script that CI runs
judges them with GATE_RECORDED.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.latency.records import BENCHMARK
from tests.gate.test_gate import FLOAT, INT8, ROOT, answer, commit, measure, project, set_group

__all__ = ["project"]

Judge = Callable[..., tuple[int, str]]
"""Exit code and the verdict in Markdown."""


def git(*words: str) -> str:
    return subprocess.check_output(["git", *words], text=True).strip()


@pytest.fixture
def judge(project: Path) -> Judge:
    """Of `BASE [HEAD]`, in a project whose branch `base` has everything that the script needs."""
    (project / "pipeline").symlink_to(ROOT / "pipeline")
    (project / ".github").mkdir()
    shutil.copy(ROOT / ".github/gate.sh", project / ".github")
    (project / ".gitignore").write_text("/.work/\n")
    commit()
    git("branch", "base")

    def run(*revisions: str) -> tuple[int, str]:
        environment = os.environ | {
            "GATE_RECORDED": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        script = ["bash", project / ".github/gate.sh", *revisions]
        done = subprocess.run(script, env=environment, cwd="/", capture_output=True, text=True)
        verdict = project / ".work/gate/verdict.md"
        return done.returncode, verdict.read_text() if verdict.exists() else done.stderr

    return run


def branch(name: str) -> None:
    git("checkout", "-qb", name, "base")


def test_a_branch_that_lost_answers_and_time_is_a_regression(judge: Judge) -> None:
    branch("worse")
    answer(INT8, lost=60)
    measure(seed=10, int8=1.2)
    commit()
    code, verdict = judge("base")
    assert code == 1
    assert verdict.startswith("### The gate: REGRESSION\n")
    found = [line.split() for line in verdict.splitlines() if INT8 in line and "[" in line]
    assert {tuple(row[1:4]) for row in found} == {
        ("regression", INT8, "latency"),
        ("regression", INT8, "top-1"),
    }
    assert FLOAT not in verdict


def test_a_branch_that_was_measured_again_passes(judge: Judge) -> None:
    branch("same")
    measure(seed=10)
    commit()
    code, verdict = judge("base")
    assert code == 0 and verdict.startswith("### The gate: PASSED\n")


def test_what_cannot_be_told_is_treated_as_params_say(judge: Judge) -> None:
    branch("doubtful")
    measure(seed=10, int8=1.08)
    commit()
    assert judge("base")[0] == 3
    set_group("gate", inconclusive="pass")
    commit()
    code, verdict = judge("base")
    assert code == 0 and verdict.startswith("### The gate: INCONCLUSIVE\n")


def test_a_branch_that_is_not_checked_out_is_judged_by_its_name(judge: Judge) -> None:
    branch("worse")
    answer(FLOAT, lost=60)
    commit()
    git("checkout", "-q", "base")
    code, verdict = judge("base", "worse")
    assert code == 1 and f"{git('rev-parse', 'base')} (base)" in verdict
    assert git("rev-parse", "worse") in verdict


def test_what_is_not_committed_is_neither_judged_nor_touched(judge: Judge) -> None:
    measure(seed=10, int8=2.0)
    slow = BENCHMARK.read_bytes()
    assert judge("base")[0] == 0
    assert BENCHMARK.read_bytes() == slow


def test_records_that_are_none_are_invalid(judge: Judge) -> None:
    branch("broken")
    BENCHMARK.write_text("{}")
    commit()
    code, verdict = judge("base")
    assert code == 2 and verdict.startswith("### The gate: INVALID\n")


def test_a_revision_that_does_not_exist_is_named(judge: Judge) -> None:
    code, said = judge("nowhere")
    assert code == 2 and "nowhere is not a revision" in said


def test_the_workflow_runs_no_code_of_a_pull_request_beside_a_token_that_writes() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/gate.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        checks_out = any("checkout" in step.get("uses", "") for step in job["steps"])
        assert checks_out == (name == "gate")
        assert ("permissions" in job) != checks_out
