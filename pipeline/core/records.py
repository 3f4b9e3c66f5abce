"""Records: the JSON files that stages hand to each other.

Every record is a frozen type with strict keys, next to the room that writes it. Accuracies and
shares are fractions in [0, 1], latencies milliseconds, sizes bytes, digests SHA-256 in hexadecimal.

How damage is noticed, for stages that are run by hand, too:
- A record ends with a digest of its own fields: no changed figure passes for a recorded one.
- Arrays, weights, models and curves are opened through `core.files.checked` with the digest in the
  record that describes them. So is a record of which there are several of a kind and which does not
  name what it is about: another artifact's metrics, for example, are sound in themselves.
- A folder that the user's own files lie in, and a checkpoint of training, see to it themselves.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.core.errors import PipelineError
from pipeline.core.files import write_whole

METRICS = Path("metrics")
"""Small records of a run, kept in git."""

DIGEST = "sha256"
"""The last field of a record's file: SHA-256 of the others. A file that somebody wrote by hand, or
an older version, may lack it. It is a list of one, of which `dvc metrics show` makes no column."""


class Record(BaseModel):
    """A JSON file of one object, indented."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def write(self, path: Path) -> None:
        """Write as JSON with a final newline; the file appears whole."""
        write_whole(path, self.to_json())

    def to_json(self) -> str:
        """The content of the file."""
        return _sealed(self.model_dump_json(indent=2), "\n}", ",\n  ")

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
            fields = cls._unpack(content)
            written = fields.pop(DIGEST, None) if isinstance(fields, dict) else None
            if written is not None and written != [_digest(fields)]:
                raise ValueError(f"its fields have not the digest in `{DIGEST}`")
            return cls.model_validate(fields, strict=False)
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
        return _sealed("[{\n" + ",\n".join(lines) + "\n}]", "\n}]", ",\n")

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


def _sealed(text: str, end: str, separator: str) -> str:
    """The JSON of a record, which closes with `end`, with its digest as the last field."""
    fields = json.loads(text)
    digest = _digest(fields[0] if isinstance(fields, list) else fields)
    return f'{text.removesuffix(end)}{separator}"{DIGEST}": ["{digest}"]{end}\n'


def _digest(fields: dict[str, Any]) -> str:
    """SHA-256 of the fields' values, whatever the layout of the file is."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
