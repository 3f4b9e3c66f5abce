"""The group `backends` of params.yaml; the settings of each backend are typed in its own folder."""

from __future__ import annotations

from pydantic import ConfigDict, Field, ValidationError

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.registry import backend
from pipeline.backends.base.spec import BackendSettings
from pipeline.core.errors import PipelineError
from pipeline.core.params import PARAMS_FILE, Group, Names, Selection, invalid
from pipeline.networks.params import Students


class Backends(Group):
    """Which backends are compiled for, and the settings of each under its own name."""

    model_config = ConfigDict(frozen=True, extra="allow")

    enabled: Names = Field(min_length=1, description="registered backends, in order")

    def settings(self, name: str) -> BackendSettings:
        """The settings of the backend `name`.

        Raises:
            PipelineError: for a backend that is not registered, or wrong or missing settings.
        """
        kind = backend(name).settings
        given = (self.model_extra or {}).get(name)
        if given is None:
            raise PipelineError(
                f"backends.{name}: missing", where=str(PARAMS_FILE), fix="add its precisions"
            )
        try:
            return kind.model_validate(given)
        except ValidationError as error:
            where = str(PARAMS_FILE)
            raise invalid(error, kind, where, prefix=f"backends.{name}") from None

    def pairs(self) -> list[tuple[str, str]]:
        """Every (backend, precision) that is asked for, in the order of the file."""
        return [(name, p) for name in self.enabled for p in self.settings(name).precisions]

    def artifacts(self, students: tuple[str, ...]) -> list[Artifact]:
        """Every artifact that is asked for of these students, student by student."""
        return [Artifact(s, name, precision) for s in students for name, precision in self.pairs()]


class ArtifactParams(Selection):
    """The groups that say which artifacts are asked for."""

    students: Students
    backends: Backends
