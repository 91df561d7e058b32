"""Refusals of TIFF files that are damaged, or hold something else than grey pages of one size and kind.

tifffile drops a tag that it cannot read and takes a default, ends a chain of pages where it breaks, and fills what no
strip or tile covers with anything; of some of this it tells the log (measured with 2026.3).
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from adl_monai.errors import ScanFileError

_FORMATS = {1: "unsigned integers", 2: "signed integers", 3: "real numbers"}
_READABLE = {(bits, kind) for bits in (8, 16, 32, 64) for kind in (1, 2)} | {(bits, 3) for bits in (16, 32, 64)}
_STANDARD_TAGS = range(254, 400)  # on which pixels may depend; others may be of any kind
_MAKERS = ("stk", "lsm", "fluoview", "scanimage")  # what their planes are is in words of their own
_MOST_EXPANSION = 2000  # beyond what deflate (1032) and LZW can do


def check_pages(path: Path, file: Any) -> list[Any]:
    """The pages of a TIFF, each whole, grey, and of the first one's size and kind.

    Args:
        path: Named in errors.
        file: An open `tifffile.TiffFile`.

    Raises:
        ScanFileError: Naming the first page that is missing, damaged or of another kind.
    """
    pages: dict[int, Any] = {}
    for page in file.pages:
        if page.offset in pages:
            raise ScanFileError(f"{path}: TIFF page {len(pages) + 1} points back to an earlier page; it is damaged.")
        pages[page.offset] = page
    file.filehandle.seek(file.pages.next_page_offset)
    following = file.filehandle.read(file.tiff.offsetsize)
    if not pages or len(following) < file.tiff.offsetsize or any(following):
        raise ScanFileError(f"{path}: TIFF page {len(pages) + 1} lies outside the file; it is cut short or damaged.")
    first = file.pages.first
    for number, page in enumerate(pages.values(), 1):
        where = f"{path}: TIFF page {number}" if len(pages) > 1 else f"{path}: the image"
        if fault := _lost_tags(file, page):
            raise ScanFileError(f"{where} {fault}; the file is cut short or damaged.")
        if fault := _page_fault(page):
            raise ScanFileError(f"{where} {fault}")
        if _kind(page) != _kind(first):
            raise ScanFileError(
                f"{where} is {_kind(page)}, but page 1 {_kind(first)}; expected one size and kind. Save each as a file."
            )
        if fault := _gap(file, page, len(pages)):
            raise ScanFileError(f"{where} {fault}; the file is cut short or damaged.")
    return list(pages.values())


def _lost_tags(file: Any, page: Any) -> str:
    """Which tags of a page tifffile dropped, as "has ..."; empty if none."""
    file.filehandle.seek(page.offset)
    (count,) = struct.unpack(file.tiff.tagnoformat, file.filehandle.read(file.tiff.tagnosize))
    table = file.filehandle.read(count * file.tiff.tagsize)
    codes = {struct.unpack_from(file.byteorder + "H", table, at)[0] for at in range(0, len(table), file.tiff.tagsize)}
    lost = sorted(code for code in codes & set(_STANDARD_TAGS) if code not in page.tags)
    return f"has values of tags {lost} that lie outside the file or are of no known type" if lost else ""


def _page_fault(page: Any) -> str:
    """What a page has, or is, that is no grey picture, what was expected and the next move; empty if it is one."""
    if page.is_reduced or page.is_mask:
        return "is a thumbnail or mask of another page; expected slices alone. Save the image without it."
    if 262 not in page.tags or page.photometric not in (0, 1):
        found = f"{page.photometric:d} ({getattr(page.photometric, 'name', 'unknown')})" if 262 in page.tags else "none"
        return (
            f"has the photometric interpretation {found}; expected grey values (0 black or 0 white). Convert colours "
            "and palettes to grey."
        )
    if page.samplesperpixel != 1:
        return (
            f"has {page.samplesperpixel} samples a pixel (channels, or grey with transparency); expected one grey "
            "value a pixel. Save each channel as a file, without transparency."
        )
    if (page.bitspersample, page.sampleformat) not in _READABLE:
        name = _FORMATS.get(page.sampleformat, f"samples of format {page.sampleformat:d}")
        return (
            f"has {page.bitspersample}-bit {name}; expected integers of 8, 16, 32 or 64 bits or real numbers of 16, 32 "
            "or 64 bits. Convert the image."
        )
    if page.imagedepth != 1 or any(getattr(page, f"is_{maker}") for maker in _MAKERS):
        return "may hold several planes, channels or time points; expected one slice. Export the volume as OME-TIFF."
    if (orientation := page.tags.valueof(274, default=1)) not in (1, 2, 3, 4):
        return f"has orientation {orientation}, to be turned for display; expected 1. Save the image upright."
    return ""


def _kind(page: Any) -> str:
    return (
        f"{page.imagewidth} x {page.imagelength} pixels of {page.bitspersample}-bit {_FORMATS[page.sampleformat]}, "
        f"photometric interpretation {page.photometric:d}, orientation {page.tags.valueof(274, default=1)}"
    )


def _gap(file: Any, page: Any, pages: int) -> str:
    """Which of a page's pixels no strip or tile inside the file covers, as "has ..."; empty if none."""
    size, lengths = file.filehandle.size, page.databytecounts
    parts = math.prod(page.chunked) if page.size else 0
    if not parts or not len(page.dataoffsets) == len(lengths) == parts:
        return f"has {len(page.dataoffsets)} strips or tiles; expected {parts or 'one at least'}"
    if any(length <= 0 or start + length > size for start, length in zip(page.dataoffsets, lengths, strict=True)):
        return f"has pixels outside the file ({size} bytes)"
    if sum(lengths) < page.nbytes and (page.compression == 1 or page.nbytes * pages > size * _MOST_EXPANSION):
        return f"claims {page.nbytes} bytes of pixels and has {sum(lengths)}"
    if page.compression in (2, 3, 4):  # CCITT
        return "claims a compression of black and white images"
    return ""
