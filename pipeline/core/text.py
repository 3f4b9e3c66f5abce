"""Text from files and users as messages show it: short, and without control characters."""

from __future__ import annotations

import unicodedata

_CONTROL = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, lone surrogates, and separators of lines."""


def printable(text: str) -> str:
    """`text` with control characters but line feeds escaped: names of files may have some."""
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in _CONTROL and letter != "\n"
        else letter
        for letter in text
    )


def readable(text: str, limit: int) -> str:
    """`text` for a terminal; its middle is left out where it has more than `limit` characters."""
    if len(text) > limit:
        text = f"{text[: limit // 2]}...{text[3 - limit // 2 :]}"
    return printable(text)


def shorten(text: str, limit: int = 60) -> str:
    """`text` on one line; its middle is left out where it has more than `limit` characters."""
    return readable(text, limit).replace("\n", " ")


def first_line(error: Exception, skip: tuple[str, ...] = ()) -> str:
    """The first line of what a library says, of at most 200 characters; its type if it is silent.

    Args:
        error: that it raised.
        skip: beginnings of lines that tell nothing, where there are others.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(skip)] if skip else lines
    return shorten((telling or lines or [type(error).__name__])[0], 200)


def show(value: object) -> str:
    """The `repr` of a value of any size, shortened to 60 characters."""
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses 4,300 digits
        return "an integer of many digits"
    if isinstance(value, str) and len(value) > 60:
        return repr(shorten(value))
    return shorten(repr(value))
