"""Records: strict JSON files, whose mistakes are one message each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.records import DetailRecord, Record


class Plain(Record):
    """A record of one number."""

    number: int


class Detail(DetailRecord):
    """A record with a line for each row and each point."""

    line_per_entry = ("rows", "points")

    name: str
    rows: dict[str, int]
    points: tuple[tuple[int, int], ...] = ()


DETAIL = Detail(name="é", rows={"a": 1, "b": 2}, points=((1, 2), (3, 4)))


@pytest.mark.parametrize("record", [Plain(number=1), DETAIL, Detail(name="", rows={})])
def test_a_record_is_read_as_it_was_written(tmp_path: Path, record: Record) -> None:
    record.write(tmp_path / "deep" / "file.json")
    assert type(record).read(tmp_path / "deep" / "file.json") == record
    assert (tmp_path / "deep" / "file.json").read_text().endswith("\n")


def test_a_detail_record_is_a_list_of_one_object_with_a_line_for_each_entry() -> None:
    (fields,) = json.loads(DETAIL.to_json())
    (digest,) = fields.pop("sha256")
    assert fields == DETAIL.model_dump(mode="json")
    assert DETAIL.to_json().splitlines() == [
        *("[{", '"name": "é",', '"rows": {', '"a": 1,', '"b": 2', "},"),
        *('"points": [', "[1,2],", "[3,4]", "],", f'"sha256": ["{digest}"]', "}]"),
    ]


@pytest.mark.parametrize("record", [Plain(number=1), DETAIL])
def test_no_flipped_bit_gives_another_record(record: Record) -> None:
    content = bytearray(record.to_json().encode())
    for bit in range(8 * len(content)):
        content[bit // 8] ^= 1 << bit % 8
        try:  # a space that becomes another one changes nothing
            assert type(record).parse(bytes(content), "file.json") == record, bit
        except PipelineError as error:
            assert error.where == "file.json"
        content[bit // 8] ^= 1 << bit % 8


def test_a_digest_that_is_not_the_records_is_told() -> None:
    text = Plain(number=1).to_json()
    with pytest.raises(PipelineError, match="not the digest in `sha256`"):
        Plain.parse(text.replace("1,", "2,", 1).encode(), "file.json")
    written_by_hand = b'{"number": 2}'
    assert Plain.parse(written_by_hand, "file.json") == Plain(number=2)


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        (Plain, "{", "not a Plain record: "),
        (Plain, "[]", "valid dictionary"),
        (Plain, '{"number": "x"}', "valid integer"),
        (Plain, '{"number": 1, "other": 2}', "Extra inputs"),
        (Plain, "{}", "Field required"),
        (Detail, '{"name": "", "rows": {}}', "not a list with one object"),
        (Detail, "[]", "not a list with one object"),
        (Detail, "null", "not a list with one object"),
    ],
)
def test_a_file_that_is_not_a_record_is_named(
    tmp_path: Path, kind: type[Record], content: str, said: str
) -> None:
    file = tmp_path / "file.json"
    file.write_text(content)
    with pytest.raises(PipelineError, match=said) as error:
        kind.read(file)
    assert error.value.where == str(file)


def test_a_missing_record_is_named_with_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="there is no Plain record") as error:
        Plain.read(tmp_path / "none.json")
    assert error.value.fix == "run `dvc repro`"
