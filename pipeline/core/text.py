"""Text from files and users as messages show it: short, and without control characters."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # all but the end of a line


def readable(text: str, limit: int) -> str:
    """`text` for a terminal; its middle is left out where it has more than `limit` characters."""
    if len(text) > limit:
        text = f"{text[: limit // 2]}...{text[3 - limit // 2 :]}"
    return _CONTROL.sub("?", text)


def shorten(text: str, limit: int = 60) -> str:
    """`text` on one line; its middle is left out where it has more than `limit` characters."""
    return readable(text, limit).replace("\n", " ")


def show(value: object) -> str:
    """The `repr` of a value of any size, shortened to 60 characters."""
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses 4,300 digits
        return "an integer of many digits"
    if isinstance(value, str) and len(value) > 60:
        return repr(shorten(value))
    return shorten(repr(value))
