"""TIFF files written tag by tag, so that a test can have any that a program might write."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

Tags = Mapping[int, tuple[int, Sequence[int] | bytes] | None]
CODES = {0: "H", 1: "B", 2: "s", 3: "H", 4: "I", 5: "I", 7: "s", 8: "h", 13: "I", 16: "Q", 99: "H"}
FORMATS = {"u": 1, "i": 2, "f": 3, "c": 6}


def text(words: str) -> tuple[int, bytes]:
    return 2, words.encode() + b"\0"


def ratio(upper: int, lower: int) -> tuple[int, Sequence[int]]:
    return 5, (upper, lower)


def build_tiff(
    path: Path,
    pages: np.ndarray | Sequence[np.ndarray],
    tags: Tags | Sequence[Tags] = (),
    order: str = "<",
    big: bool = False,
) -> Path:
    """Write uncompressed pages, each (rows, columns[, samples]).

    Args:
        path: The file.
        pages: The pages; an array has them along its first axis.
        tags: (type, values) for each tag beside or in place of those that the voxels need, None to leave one out; for
            all pages or for each.
        order: Byte order.
        big: Whether to write a BigTIFF.
    """
    pointer, size = ("Q", 8) if big else ("I", 4)
    mark = {"<": b"II", ">": b"MM"}[order]
    content = bytearray(mark + struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, 0) if big else (42, 0))))
    link = len(content) - size
    for index, voxels in enumerate(pages):
        own = tags if isinstance(tags, Mapping) else tags[index] if tags else {}
        start = len(content)
        content += voxels.astype(voxels.dtype.newbyteorder(order)).tobytes()
        samples = voxels.shape[2] if voxels.ndim == 3 else 1
        fields: dict[int, tuple[int, Sequence[int] | bytes] | None] = {
            256: (4, [voxels.shape[1]]), 257: (4, [voxels.shape[0]]), 258: (3, [voxels.itemsize * 8] * samples),
            259: (3, [1]), 262: (3, [1]), 273: (16 if big else 4, [start]), 277: (3, [samples]),
            278: (4, [voxels.shape[0]]), 279: (16 if big else 4, [voxels.nbytes]),
            339: (3, [FORMATS[voxels.dtype.kind]] * samples), **own,
        }  # fmt: skip
        rows = []
        for tag, field in sorted(fields.items()):
            if field is not None:
                kind, values = field
                if isinstance(values, bytes):
                    raw, count = values, len(values)
                else:
                    raw = struct.pack(f"{order}{len(values)}{CODES[kind]}", *values)
                    count = len(values) // (2 if kind == 5 else 1)
                if len(raw) > size:
                    raw, place = struct.pack(order + pointer, len(content)), raw
                    content += place
                rows.append(struct.pack(f"{order}HH{pointer}", tag, kind, count) + raw.ljust(size, b"\0"))
        content[link : link + size] = struct.pack(order + pointer, len(content))
        content += struct.pack(order + ("Q" if big else "H"), len(rows)) + b"".join(rows)
        link = len(content)
        content += bytes(size)
    path.write_bytes(content)
    return path
