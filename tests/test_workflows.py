"""What runs on GitHub: actions that cannot change, and no token beside the code of others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

WORKFLOWS = sorted((Path(__file__).parents[1] / ".github/workflows").glob("*.yml"))
USED = [
    step
    for file in WORKFLOWS
    for job in yaml.safe_load(file.read_text())["jobs"].values()
    for step in job["steps"]
    if "uses" in step
]


@pytest.mark.parametrize("step", USED, ids=lambda step: step["uses"].partition("@")[0])
def test_an_action_is_named_by_its_commit_and_a_checkout_keeps_no_token(step: dict) -> None:
    assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])
    if step["uses"].startswith("actions/checkout@"):
        assert step["with"]["persist-credentials"] is False
