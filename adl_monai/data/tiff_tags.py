"""The directories ("pages") of a TIFF file, their tags checked to lie inside the file; no voxels are read."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from adl_monai.errors import ScanFileError

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_ORDERS: dict[bytes, Literal["<", ">"]] = {b"II": "<", b"MM": ">"}
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}  # as libtiff takes them
_STRIPS = ((273, 279), (324, 325))  # (offsets, byte counts) of strips and of tiles

NEW_SUBFILE_TYPE, SUBFILE_TYPE = 254, 255
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
DESCRIPTION, STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES = 270, 273, 274, 277, 278, 279
TILE_WIDTH, SAMPLE_FORMAT = 322, 339
# What a page says of itself beside its pixels: names, device, resolution and place on the page, date, people, and what
# ImageJ keeps beside its description (overlays, slice labels, lookup tables).
DESCRIPTIVE = (269, DESCRIPTION, 271, 272, 282, 283, 285, 286, 287, 296, 297, 306, 315, 316, 33432, 50838, 50839)
_WANTED = {
    NEW_SUBFILE_TYPE, SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES, TILE_WIDTH,
    SAMPLE_FORMAT, *DESCRIPTIVE,
}  # fmt: skip


@dataclass(frozen=True)
class TiffTag:
    """One tag as the file holds it.

    Attributes:
        kind: Its type's number (2 text, 3 SHORT, ...).
        count: How many values of that type.
        raw: Their bytes, in the file's byte order.
    """

    kind: int
    count: int
    raw: bytes


@dataclass(frozen=True)
class Tiff:
    """The pages of a TIFF file.

    Attributes:
        order: Byte order, ``<`` or ``>``.
        big: Whether it is a BigTIFF, with offsets of 64 bits.
        pages: The tags that are looked at here, for each page in the order of the chain.
    """

    order: Literal["<", ">"]
    big: bool
    pages: tuple[Mapping[int, TiffTag], ...]

    def integers(self, page: int, tag: int) -> tuple[int, ...]:
        """A tag's integers; empty where the page lacks it or it holds something else."""
        found = self.pages[page].get(tag)
        if found is None or found.kind not in _INTEGERS:
            return ()
        return struct.unpack(f"{self.order}{found.count}{_INTEGERS[found.kind]}", found.raw)

    def integer(self, page: int, tag: int, default: int = 0) -> int:
        """A tag's first integer."""
        return next(iter(self.integers(page, tag)), default)

    def text(self, page: int, tag: int = DESCRIPTION) -> str:
        """A tag's text; empty where the page lacks it."""
        found = self.pages[page].get(tag)
        return found.raw.rstrip(b"\0").decode("utf-8", "replace") if found else ""


def read_tiff(path: Path) -> Tiff:
    """Walk a TIFF's chain of directories and check that every directory, tag and strip lies inside the file.

    Raises:
        ScanFileError: If the chain is broken, cyclic or points outside the file.
    """
    size = path.stat().st_size
    pages: list[Mapping[int, TiffTag]] = []
    with path.open("rb") as file:
        start = file.read(16)
        order = _ORDERS.get(start[:2])
        if order is None or len(start) < 16:
            raise ScanFileError(f"{path}: this is not a TIFF file, or cut short in its first bytes.")
        big = struct.unpack(f"{order}H", start[2:4])[0] == 43
        offset = struct.unpack(f"{order}{'Q' if big else 'I'}", start[8:16] if big else start[4:8])[0]
        seen: set[int] = set()
        while offset:
            if offset in seen:
                raise ScanFileError(f"{path}: TIFF page {len(seen) + 1} points back to an earlier page; it is damaged.")
            seen.add(offset)
            try:
                page, offset = _read_page(file, offset, order, big, size)
            except (struct.error, ValueError) as error:
                raise ScanFileError(
                    f"{path}: TIFF page {len(seen)} lies outside the file ({size} bytes); it is cut short or damaged."
                ) from error
            pages.append(page)
    return Tiff(order, big, tuple(pages))


def _read_page(file: IO[bytes], offset: int, order: str, big: bool, size: int) -> tuple[dict[int, TiffTag], int]:
    """One directory's tags and the offset of the next (0 after the last)."""
    count_format, entry_size, pointer = ("Q", 20, "Q") if big else ("H", 12, "I")
    if offset >= size:  # the system refuses to seek some offsets of 64 bits
        raise ValueError(offset)
    file.seek(offset)
    (entries,) = struct.unpack(order + count_format, file.read(struct.calcsize(count_format)))
    table = file.read(min(entries * entry_size, size))
    (following,) = struct.unpack(order + pointer, file.read(struct.calcsize(pointer)))
    tags: dict[int, TiffTag] = {}
    strips: dict[int, tuple[int, ...]] = {}
    wanted_strips = {tag for pair in _STRIPS for tag in pair}
    for start in range(0, entries * entry_size, entry_size):
        tag, kind, count = struct.unpack_from(f"{order}HH{pointer}", table, start)
        length = _SIZES.get(kind, 0) * count
        field = start + struct.calcsize(f"{order}HH{pointer}")
        inline = length <= struct.calcsize(pointer)
        position = 0 if inline else struct.unpack_from(order + pointer, table, field)[0]
        if position + length > size:
            raise ValueError(tag)
        if tag not in _WANTED and tag not in wanted_strips:
            continue
        if not inline:
            file.seek(position)
        raw = table[field : field + length] if inline else file.read(length)
        if tag in wanted_strips and kind in (3, 4, 16):
            strips[tag] = struct.unpack(f"{order}{count}{_INTEGERS[kind]}", raw)
        elif tag in _WANTED and kind in _SIZES:
            tags.setdefault(tag, TiffTag(kind, count, raw))  # of two, libtiff takes the first
    for offsets, counts in _STRIPS:
        for strip, strip_length in zip(strips.get(offsets, ()), strips.get(counts, ()), strict=False):
            if strip + strip_length > size:
                raise ValueError(offsets)
    return tags, int(following)
