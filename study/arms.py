"""What arms.yaml says: the study's seeds, and the losses of each arm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ARMS = Path("arms.yaml")


def read_arms() -> tuple[tuple[int, ...], dict[str, list[dict[str, Any]]]]:
    """The seeds, and by arm the terms of its loss, as params.yaml has them in `distill.losses`."""
    tree = yaml.safe_load(ARMS.read_text())
    return tuple(tree["seeds"]), tree["arms"]
