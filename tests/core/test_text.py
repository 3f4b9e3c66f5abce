"""What is told of a library's error."""

from __future__ import annotations

from pipeline.core.text import first_line


def test_the_first_telling_line_of_an_error_is_told() -> None:
    error = RuntimeError("\n Exception from core.cpp:5:\n  the file is cut \nmore")
    assert first_line(error) == "Exception from core.cpp:5:"
    assert first_line(error, ("Exception from",)) == "the file is cut"
    assert first_line(RuntimeError(" \n")) == "RuntimeError"
    assert first_line(RuntimeError("Exception"), ("Exception",)) == "Exception"
    assert len(first_line(ValueError("x" * 999))) <= 200
