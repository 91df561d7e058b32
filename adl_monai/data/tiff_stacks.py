"""What the description of a TIFF stack says of its pages: slices, or channels and time points, which are no volume.

ImageJ, OME-TIFF and tifffile write what the pages are into the first one's ImageDescription; TIFF itself has no word
for it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from adl_monai.data.tiff_tags import Tiff
from adl_monai.errors import ScanFileError

_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b[^<>]*>")
_TIFF_DATA = re.compile(r"<(?:\w+:)?TiffData\b[^<>]*>")
_PARTS = {"c": "channels", "t": "time points", "s": "samples"}


def is_imagej(description: str) -> bool:
    """Whether ImageJ's words begin a description."""
    return description.startswith("ImageJ=")


def is_ome(description: str) -> bool:
    """Whether a description is OME-XML."""
    return re.search(r"<(?:\w+:)?OME\b", description[:4096]) is not None


def ome_pixels(description: str) -> list[dict[str, str]]:
    """The attributes of each Pixels element of OME-XML: one for each image in the file."""
    return [_attributes(element) for element in _PIXELS.findall(description)]


def check_stack(path: Path, tiff: Tiff) -> None:
    """Refuse a stack whose description says that its pages are not the slices of one volume.

    Args:
        path: Named in errors.
        tiff: Its pages.

    Raises:
        ScanFileError: Naming the channels or time points, or the number of images that the pages do not match.
    """
    description, pages = tiff.text(0), len(tiff.pages)
    if is_imagej(description):
        _check_imagej(path, description, pages)
    elif is_ome(description):
        _check_ome(path, description, pages)
    elif description.startswith('{"shape":'):
        _check_shaped(path, description, pages)


def _check_imagej(path: Path, description: str, pages: int) -> None:
    counts = {
        name: int(count) for name, count in re.findall(r"^(\w+)=([0-9]{1,18})[ \t\r]*$", description, re.MULTILINE)
    }
    _refuse_parts(path, "ImageJ", {"channels": counts.get("channels", 1), "time points": counts.get("frames", 1)})
    if (images := counts.get("images", pages)) != pages:  # ImageJ leaves the pages of very large stacks out
        raise ScanFileError(
            f"{path}: ImageJ's description counts {images} images, but the file has {pages} TIFF pages; expected one "
            "page for each image. Save the stack as NRRD or NIfTI, or copy the file again if it was cut short."
        )


def _check_ome(path: Path, description: str, pages: int) -> None:
    images = ome_pixels(description)
    if len(images) > 1 or (not images and pages > 1):
        raise ScanFileError(
            f"{path}: the OME-XML describes {len(images)} images; expected one. Save each image as a file."
        )
    for image in images:
        _refuse_parts(path, "OME-XML", {"channels": _count(image, "SizeC"), "time points": _count(image, "SizeT")})
        if (slices := _count(image, "SizeZ")) != pages:
            raise ScanFileError(
                f"{path}: the OME-XML counts {slices} slices, but the file has {pages} TIFF pages; expected one page "
                "for each slice. Save the whole image as one file."
            )
    for element in _TIFF_DATA.findall(description):
        place = _attributes(element)
        if place.get("IFD", "0") != place.get("FirstZ", "0"):
            raise ScanFileError(
                f"{path}: the OME-XML puts page {place.get('IFD', '0')} at slice {place.get('FirstZ', '0')}; expected "
                "the pages in the order of the slices. Save the image again in that order."
            )


def _check_shaped(path: Path, description: str, pages: int) -> None:
    try:
        words = json.loads(description)
        shape, axes = [int(length) for length in words["shape"]], str(words.get("axes") or "")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return  # some other program's words
    if len(axes) == len(shape):
        parts = {_PARTS[axis]: n for axis, n in zip(axes.lower(), shape, strict=True) if axis in _PARTS}
        _refuse_parts(path, "tifffile", parts)
    stacked = [length for length in shape[:-2] if length != 1]
    if len(stacked) > 1 or (stacked and stacked[0] != pages):
        raise ScanFileError(
            f"{path}: tifffile's description gives the shape {tuple(shape)} to {pages} TIFF pages; expected one 2D or "
            "3D image. Save each volume as a file."
        )


def _refuse_parts(path: Path, who: str, parts: dict[str, int]) -> None:
    for name, count in parts.items():
        if count > 1:
            raise ScanFileError(
                f"{path}: {who} describes {count} {name}; expected one 2D or 3D image. Save each of the {name} as a "
                "file; or, if they are slices of one volume, mend the description."
            )


def _count(image: dict[str, str], name: str) -> int:
    value = image.get(name, "1")
    return int(value) if re.fullmatch("[0-9]{1,18}", value) else 1


def _attributes(element: str) -> dict[str, str]:
    return {name: value for name, _, value in re.findall(r"""(?<![\w:])([\w:]+)\s*=\s*(["'])(.*?)\2""", element)}
