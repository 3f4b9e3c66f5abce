"""Records: the JSON files that stages hand to each other.

Every record is a frozen type with strict keys, next to the room that writes it. Accuracies and
shares are fractions in [0, 1], latencies milliseconds, sizes bytes, digests SHA-256 in hexadecimal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.core.errors import PipelineError
from pipeline.core.files import write_whole

METRICS = Path("metrics")
"""Small records of a run, kept in git."""


class Record(BaseModel):
    """A JSON file of one object, indented."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def write(self, path: Path) -> None:
        """Write as JSON with a final newline; the file appears whole."""
        write_whole(path, self.to_json())

    def to_json(self) -> str:
        """The content of the file."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            PipelineError: for a missing file, or one that is no such record.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise PipelineError(
                f"there is no {cls.__name__} record", where=str(path), fix="run `dvc repro`"
            ) from None
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: bytes, where: str) -> Self:
        """The record in `content`, a file's bytes.

        Args:
            content: of the file.
            where: its path, for the error.

        Raises:
            PipelineError: for a file that is no such record.
        """
        try:
            return cls.model_validate(cls._unpack(content), strict=False)
        except (ValidationError, ValueError, RecursionError) as error:
            first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise PipelineError(
                f"not a {cls.__name__} record: {first}",
                where=where,
                fix="remove it and run `dvc repro`",
            ) from None

    @classmethod
    def _unpack(cls, content: bytes) -> Any:
        return json.loads(content)


class DetailRecord(Record):
    """A record that git keeps and DVC does not show: one line per field, inside a list.

    `dvc metrics show` makes a column of each number in an object, and none of those in a list.
    A line per field, and per entry of the fields in `line_per_entry`, makes small differences.
    """

    line_per_entry: ClassVar[tuple[str, ...]] = ()
    """Fields that hold a mapping or a sequence whose entries get a line each."""

    def to_json(self) -> str:
        fields = self.model_dump(mode="json")
        lines = [f"{json.dumps(key)}: {self._value(key, value)}" for key, value in fields.items()]
        return "[{\n" + ",\n".join(lines) + "\n}]\n"

    def _value(self, key: str, value: Any) -> str:
        if key not in self.line_per_entry or not value:
            return _compact(value)
        if isinstance(value, dict):
            entries = [f"{json.dumps(name)}: {_compact(entry)}" for name, entry in value.items()]
            return "{\n" + ",\n".join(entries) + "\n}"
        return "[\n" + ",\n".join(map(_compact, value)) + "\n]"

    @classmethod
    def _unpack(cls, content: bytes) -> Any:
        packed = json.loads(content)
        if not (isinstance(packed, list) and len(packed) == 1):
            raise ValueError("not a list with one object")
        return packed[0]


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
