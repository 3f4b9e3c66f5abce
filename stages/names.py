"""Stage names: are the enabled names fit to become parts of commands and paths?

DVC makes stages of them, each with a folder of its name as an output, and removes an output before
its stage runs: a name like `../..` would remove other folders. Those stages depend on this one.
"""

from pathlib import Path
from typing import Self

from pydantic import ConfigDict, model_validator

from pipeline.core.errors import run
from pipeline.core.files import write_whole
from pipeline.core.params import Group, Names, Selection, among, load

CHECKED = Path("data/names.txt")


class Enabled(Group):
    """The names of a group; other stages check the rest of it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    enabled: Names


class NamesParams(Selection):
    """What the stage `names` reads."""

    teachers: Enabled
    students: Enabled
    backends: Enabled
    prune: Enabled
    attribution: Enabled
    robustness: Enabled

    @model_validator(mode="after")
    def _students_are_enabled(self) -> Self:
        for group in ("prune", "attribution", "robustness"):
            among(getattr(self, group).enabled, self.students.enabled, group, "students.enabled")
        return self


def main() -> None:
    load(NamesParams)
    # Always the same, so that another name makes none of the other stages run.
    write_whole(CHECKED, "All names that params.yaml enables are fit for paths.\n")


if __name__ == "__main__":
    run(main)
