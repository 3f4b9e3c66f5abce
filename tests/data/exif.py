"""EXIF blocks for tests: sound ones, wrongly typed entries, and mutated bytes."""

from __future__ import annotations

import random
import struct

TAGS = (
    0x0100, 0x0101, 0x010E, 0x010F, 0x0112, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x0201, 0x0202,
    0x0213, 0x501B, 0x8298, 0x8769, 0x8825, 0x927C, 0x9C9B, 0xA005, 0xB001, 0xB002,
)  # fmt: skip
SIZES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 99: 1,
}  # fmt: skip
"""Bytes of a value by its type; 99 is none of EXIF's."""

Entry = tuple[int, int, int, bytes]
"""Tag, type, number of values, and the values."""


def block(entries: list[Entry], order: str = "<") -> bytes:
    """An EXIF block of one directory, `order` as `struct` writes it."""
    table, values = b"", b""
    start = 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        field = value.ljust(4, b"\0")
        if len(value) > 4:
            field = struct.pack(order + "L", start + len(values))
            values += value
        table += struct.pack(order + "HHL", tag, kind, count) + field
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "L", 8)
    count = struct.pack(order + "H", len(entries))
    return b"Exif\0\0" + head + count + table + bytes(4) + values


def orientation(value: int, order: str = "<") -> Entry:
    """The entry that alone is needed."""
    return (0x0112, 3, 1, struct.pack(order + "H", value))


def strange(draw: random.Random, turned: int | None) -> bytes:
    """Random tags of random types and values, and `turned`, if any, as a sound orientation."""
    order = draw.choice("<>")
    entries: list[Entry] = []
    for _ in range(draw.randint(1, 8)):
        kind, count = draw.choice(list(SIZES)), draw.choice((0, 1, 1, 1, 2, 3, 5, 100))
        claimed = count if draw.random() < 0.95 else draw.choice((10**6, 2**31, 2**32 - 1))
        value = draw.randbytes(SIZES[kind] * count)
        entries.append((draw.choice(TAGS), kind, claimed, value))
    if turned is not None:
        entries = [entry for entry in entries if entry[0] != 0x0112]
        entries.insert(draw.randint(0, len(entries)), orientation(turned, order))
    return block(entries, order)


def mutated(draw: random.Random, exif: bytes) -> bytes:
    """The block with up to four bytes changed, cut out or put in."""
    content = bytearray(exif)
    for _ in range(draw.randint(1, 4)):
        place, way = draw.randrange(6, len(content) + 1), draw.random()
        if way < 0.6 and place < len(content):
            content[place] = draw.choice((0, 255, draw.randrange(256)))
        elif way < 0.8:
            del content[place : place + draw.randint(1, 9)]
        else:
            content[place:place] = draw.randbytes(draw.randint(1, 5))
    return bytes(content)
