"""Refusals of TIFF files that ITK would read as something they are not.

ITK takes the first page's word for all pages, reads two or four samples a pixel as if they were one, half precision as
integers and palettes as colours, and turns what it does not know (tiles, 12 bits) to colour (measured with SimpleITK
2.5). Which number is white (MINISWHITE) is left as it is, as in DICOM's MONOCHROME1.
"""

from __future__ import annotations

from pathlib import Path

from adl_monai.data.tiff_stacks import check_stack
from adl_monai.data.tiff_tags import (
    BITS,
    COMPRESSION,
    HEIGHT,
    NEW_SUBFILE_TYPE,
    ORIENTATION,
    PHOTOMETRIC,
    SAMPLE_FORMAT,
    SAMPLES,
    SUBFILE_TYPE,
    TILE_WIDTH,
    WIDTH,
    Tiff,
)
from adl_monai.errors import ScanFileError

_COLOURS = {2: "RGB colour", 5: "CMYK colour", 6: "YCbCr colour", 8: "CIELab colour", 9: "ICCLab colour",
            10: "ITULab colour", 32803: "a camera's colour mosaic"}  # fmt: skip
_FORMATS = {1: "unsigned integers", 2: "signed integers", 3: "real numbers", 5: "complex integers",
            6: "complex numbers"}  # fmt: skip
_READABLE = {(8, 1), (16, 1), (32, 1), (8, 2), (16, 2), (32, 2), (32, 3)}  # (bits, format)
_CODECS = {1, 5, 6, 7, 8, 32773, 32909, 32946}  # those that ITK is built with, for grey values
_CODEC_NAMES = {2: "CCITT", 3: "CCITT", 4: "CCITT", 33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000",
                34887: "LERC", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL"}  # fmt: skip
_UPRIGHT = (1, 4)  # ITK turns the rows of 4 (bottom row first) round


def check_tiff(path: Path, tiff: Tiff) -> None:
    """Refuse what is not one grey 2D or 3D image of a pixel kind that ITK reads truly.

    Args:
        path: Named in errors.
        tiff: Its pages.

    Raises:
        ScanFileError: Naming the first page that is of another kind, or the channels, time points or parts that the
            description (ImageJ, OME, tifffile) names.
    """
    if not tiff.pages:
        raise ScanFileError(f"{path}: this TIFF file has no pages; it is cut short or damaged.")
    for page in range(len(tiff.pages)):
        where = f"TIFF page {page + 1}" if len(tiff.pages) > 1 else "the image"
        if fault := _page_fault(tiff, page):
            raise ScanFileError(f"{path}: {where} {fault}")
        if page and (fault := _difference(tiff, page)):
            raise ScanFileError(
                f"{path}: {where} has {fault} on page 1; expected pages of one size and kind. Save each as a file."
            )
    check_stack(path, tiff)


def _page_fault(tiff: Tiff, page: int) -> str:
    """What a page has, or is, that cannot be read truly, what was expected and the next move; empty if it can."""
    photometric = tiff.integer(page, PHOTOMETRIC, -1)
    bits, samples = tiff.integer(page, BITS, 1), tiff.integer(page, SAMPLES, 1)
    sample_format = tiff.integer(page, SAMPLE_FORMAT, 1)
    compression = tiff.integer(page, COMPRESSION, 1)
    if tiff.integer(page, NEW_SUBFILE_TYPE) & 5 or tiff.integer(page, SUBFILE_TYPE) == 2:
        return "is a thumbnail or mask of another page; expected slices alone. Save the image without it."
    if photometric == 3:
        return "has colours from a palette; expected grey values. Apply the palette and convert the image to grey."
    if photometric not in (0, 1):
        found = _COLOURS.get(photometric, f"pixels of photometric interpretation {photometric}")
        if photometric == -1:
            found = "no photometric interpretation"
        return f"has {found}; expected grey values (0 black or 0 white). Convert colour images to grey."
    if samples != 1:
        return (
            f"has {samples} samples a pixel (channels, or grey with transparency); expected one grey value a pixel. "
            "Save each channel as a file, without transparency."
        )
    if (bits, sample_format) not in _READABLE:
        name = _FORMATS.get(sample_format, f"samples of the unknown format {sample_format}")
        return (
            f"has {bits}-bit {name}; expected integers of 8, 16 or 32 bits or 32-bit real numbers. Convert the image."
        )
    if TILE_WIDTH in tiff.pages[page]:
        return "has its pixels in tiles; expected strips. Save the image without tiles."
    if compression not in _CODECS:
        name = _CODEC_NAMES.get(compression, f"scheme {compression}")
        return f"has pixels compressed by {name}; expected none, LZW, deflate, PackBits or JPEG. Save the image so."
    orientation = tiff.integer(page, ORIENTATION, 1)
    if orientation not in _UPRIGHT:
        return (
            f"has orientation {orientation}, to be turned or mirrored for display; expected 1. Save the image upright."
        )
    return ""


def _difference(tiff: Tiff, page: int) -> str:
    """In what a page differs from the first, as "3 x 3 pixels, not 5 x 6 pixels as"; empty if in nothing."""
    pairs = zip(_properties(tiff, page), _properties(tiff, 0), strict=True)
    return next((f"{found}, not {first} as" for found, first in pairs if found != first), "")


def _properties(tiff: Tiff, page: int) -> tuple[str, ...]:
    return (
        f"{tiff.integer(page, WIDTH)} x {tiff.integer(page, HEIGHT)} pixels",
        f"{tiff.integer(page, BITS)}-bit {_FORMATS[tiff.integer(page, SAMPLE_FORMAT, 1)]}",
        f"photometric interpretation {tiff.integer(page, PHOTOMETRIC)}",
        f"orientation {tiff.integer(page, ORIENTATION, 1)}",
    )
