"""Writing voxels as the TIFF file they came from, with what that file says of itself.

SimpleITK writes neither descriptions nor photometric interpretations, and a resolution per inch only, which turns
ImageJ's pixels per micron into 1 mm. All voxels lie in one run before the directories: ImageJ takes no others for a
stack whose description counts its images.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

import numpy as np

from adl_monai.data.tiff_stacks import is_ome, ome_pixels
from adl_monai.data.tiff_tags import (
    BITS,
    COMPRESSION,
    DESCRIPTION,
    DESCRIPTIVE,
    HEIGHT,
    ORIENTATION,
    PHOTOMETRIC,
    ROWS_PER_STRIP,
    SAMPLE_FORMAT,
    SAMPLES,
    STRIP_BYTES,
    STRIP_OFFSETS,
    WIDTH,
    Tiff,
    TiffTag,
)

_SHORT, _LONG, _LONG8 = 3, 4, 16
_FORMATS = {"u": 1, "i": 2, "f": 3}
_CLASSIC_LIMIT = 2**32 - 2**25  # bytes that a file with offsets of 32 bits may have, less room for the directories
_BOTTOM_ROW_FIRST = 4


def kept_description(like: Tiff, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    """Whether a file's description still holds for other voxels of this type in its place.

    OME-XML names the pixels' type and size, and often the files that hold them; what it says wrongly is worse than
    nothing. Other descriptions (ImageJ's, tifffile's, plain words) do not speak of the type.

    Args:
        like: The source's pages.
        dtype: The type to be written.
        shape: (columns, rows[, slices]).
    """
    description = like.text(0)
    if not is_ome(description):
        return True
    name = {"float32": "float"}.get(dtype.name, dtype.name)
    size = {"Type": name, "SizeX": str(shape[0]), "SizeY": str(shape[1])}
    images = ome_pixels(description)
    return "FileName" not in description and len(images) == 1 and size.items() <= images[0].items()


def write_tiff(path: Path, stored: np.ndarray, like: Tiff) -> None:
    """Write voxels uncompressed, in the source's byte order, each page with the source's descriptive tags.

    Args:
        path: The file to write.
        stored: Stored voxels (columns, rows[, slices]) of an integer or real type, rows from the top.
        like: The source's pages, one for each slice.

    Raises:
        OSError: If it cannot be written.
    """
    pages = stored.reshape(*stored.shape[:2], -1, order="F")
    if like.integer(0, ORIENTATION, 1) == _BOTTOM_ROW_FIRST:
        pages = pages[:, ::-1]
    descriptions = sum(len(tag.raw) for page in like.pages for tag in page.values())
    big = like.big or stored.nbytes + descriptions + 512 * len(like.pages) > _CLASSIC_LIMIT
    drop = () if kept_description(like, stored.dtype, stored.shape) else (DESCRIPTION,)
    with path.open("wb") as file:
        file.write(({"<": b"II", ">": b"MM"}[like.order]) + struct.pack(like.order + "H", 43 if big else 42))
        file.write(struct.pack(like.order + "HHQ", 8, 0, 0) if big else struct.pack(like.order + "I", 0))
        start, link = file.tell(), file.tell() - (8 if big else 4)
        for index in range(pages.shape[2]):
            file.write(np.ascontiguousarray(pages[..., index].T, stored.dtype.newbyteorder(like.order)).data)
        for index in range(pages.shape[2]):
            own = _page_tags(pages, index, start, like, big)
            kept = {tag: like.pages[index][tag] for tag in DESCRIPTIVE if tag in like.pages[index] and tag not in drop}
            link = _write_page(file, {**kept, **own}, link, like.order, big)


def _page_tags(pages: np.ndarray, index: int, start: int, like: Tiff, big: bool) -> dict[int, TiffTag]:
    """What readers need to find and understand a page's voxels."""
    columns, rows = pages.shape[:2]
    length = columns * rows * pages.itemsize
    offset_kind = _LONG8 if big else _LONG
    values = {
        WIDTH: (_LONG, columns),
        HEIGHT: (_LONG, rows),
        BITS: (_SHORT, pages.itemsize * 8),
        COMPRESSION: (_SHORT, 1),
        PHOTOMETRIC: (_SHORT, like.integer(index, PHOTOMETRIC, 1)),
        STRIP_OFFSETS: (offset_kind, start + index * length),
        ORIENTATION: (_SHORT, like.integer(index, ORIENTATION, 1)),
        SAMPLES: (_SHORT, 1),
        ROWS_PER_STRIP: (_LONG, rows),
        STRIP_BYTES: (offset_kind, length),
        SAMPLE_FORMAT: (_SHORT, _FORMATS[pages.dtype.kind]),
    }
    codes = {_SHORT: "H", _LONG: "I", _LONG8: "Q"}
    return {
        tag: TiffTag(kind, 1, struct.pack(like.order + codes[kind], value)) for tag, (kind, value) in values.items()
    }


def _write_page(file: IO[bytes], tags: dict[int, TiffTag], link: int, order: str, big: bool) -> int:
    """Append a directory and point ``link`` to it; returns where the next one's offset belongs."""
    pointer, size, count_format = ("Q", 8, "Q") if big else ("I", 4, "H")
    entries = []
    for number, tag in sorted(tags.items()):
        field = tag.raw
        if len(field) > size:
            field = struct.pack(order + pointer, _align(file))
            file.write(tag.raw)
        entries.append(struct.pack(f"{order}HH{pointer}", number, tag.kind, tag.count) + field.ljust(size, b"\0"))
    start = _align(file)
    file.write(struct.pack(order + count_format, len(entries)) + b"".join(entries))
    following = file.tell()
    file.write(bytes(size))
    end = file.tell()
    file.seek(link)
    file.write(struct.pack(order + pointer, start))
    file.seek(end)
    return following


def _align(file: IO[bytes]) -> int:
    """Fill up to an even offset, where TIFF wants values and directories to begin."""
    file.write(bytes(file.tell() % 2))
    return file.tell()
