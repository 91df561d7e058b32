"""What the description of a TIFF says of its pages, slices or channels and time points, and how large its voxels are.

TIFF itself has no words for either. ImageJ, OME-TIFF and tifffile write them into the first page's ImageDescription.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from adl_monai.errors import ScanFileError

_MM = {
    "m": 1e3, "cm": 10.0, "mm": 1.0, "um": 1e-3, "micron": 1e-3, "microns": 1e-3, "nm": 1e-6, "in": 25.4, "inch": 25.4,
    2: 25.4, 3: 10.0, 4: 1.0, 5: 1e-3,
}  # fmt: skip
_PARTS = {"C": "channels", "T": "time points", "S": "samples"}
_OME_TYPES = {"float32": "float", "float64": "double"}


def in_one_run(text: str) -> bool:
    """Whether the programs that write this description, ImageJ and tifffile, take all voxels to lie in one run."""
    return _is_imagej(text) or _is_shaped(text)


def is_ome(text: str) -> bool:
    """Whether a description is OME-XML."""
    return re.search(r"<(?:\w+:)?OME\b", text[:4096]) is not None


def check_words(path: Path, texts: Sequence[str], pages: int) -> None:
    """Refuse a file whose descriptions say that its pages are not the slices of one volume, or are not all here.

    Args:
        path: Named in errors.
        texts: The first page's descriptions.
        pages: How many pages there are.

    Raises:
        ScanFileError: Naming the channels, time points, images or slices that the description counts.
    """
    for text in texts:
        who, told = _told(text, pages)
        expected = {"slices": pages, "slices in another order": 0}
        if wrong := [f"{count} {name}" for name, count in told.items() if count != expected.get(name, 1)]:
            raise ScanFileError(
                f"{path}: {who} describes {' and '.join(wrong)}, and the file has {pages} TIFF pages; expected one "
                "image and a page for each slice of it, in their order. Save each image, channel or time point as a "
                "file; or, if the pages are slices of one volume, mend the description."
            )


def voxel_size(texts: Sequence[str], resolution: Sequence[float], unit: int) -> list[float]:
    """Voxel size in mm; where a size is unknown that of the other axes, or 1 mm if all are.

    Args:
        texts: The first page's descriptions.
        resolution: Pixels per unit along x and y; 0 where unknown.
        unit: The number of its unit, where the description has none.
    """
    words: dict[str, Any] = {"unit": unit}
    for text in texts:
        if is_ome(text):
            for pixels in _elements(text, "Pixels"):
                units = [pixels.get(f"PhysicalSize{axis}Unit", "um") for axis in "XYZ"]
                sizes = [_number(pixels.get(f"PhysicalSize{axis}")) * _mm(units["XYZ".index(axis)]) for axis in "XYZ"]
                if any(sizes):
                    return _completed(sizes)
        elif _is_imagej(text):
            words.update(_imagej_words(text))
    mm = _mm(words["unit"])
    return _completed([*(mm / one if one else 0.0 for one in resolution), mm * abs(_number(words.get("spacing")))])


def ome_fits(text: str, dtype: np.dtype, shape: Sequence[int]) -> bool:
    """Whether OME-XML, which names the pixels' type and size and often the files that hold them, fits other pixels."""
    size = {"Type": _OME_TYPES.get(dtype.name, dtype.name), "SizeX": str(shape[0]), "SizeY": str(shape[1])}
    pixels = _elements(text, "Pixels")
    return "FileName" not in text and len(pixels) == 1 and size.items() <= pixels[0].items()


def _is_imagej(text: str) -> bool:
    return text.startswith(("ImageJ=", "SCIFIO="))


def _is_shaped(text: str) -> bool:
    return text.startswith("{") and '"shape":' in text


def _told(text: str, pages: int) -> tuple[str, dict[str, int]]:
    """Whose words a description is, and how many images, channels, time points and slices it counts."""
    if _is_imagej(text):  # ImageJ leaves the pages of very large stacks out
        words = _imagej_words(text)
        counts = {"channels": _count(words, "channels"), "time points": _count(words, "frames")}
        return "ImageJ", {**counts, "slices": _count(words, "images", pages)}
    if is_ome(text):
        images, places = _elements(text, "Pixels"), _elements(text, "TiffData")
        told = {"images": len(images) if images or pages > 1 else 1}
        for image in images:
            told |= {"channels": _count(image, "SizeC"), "time points": _count(image, "SizeT")}
            told["slices"] = _count(image, "SizeZ")
        moved = sum(place.get("IFD", "0") != place.get("FirstZ", "0") for place in places)
        return "the OME-XML", {**told, "slices in another order": moved}
    try:
        words = json.loads(text) if _is_shaped(text) else {}
        shape, axes = [int(length) for length in words["shape"]], str(words.get("axes") or "").upper()
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return "", {}  # some other program's words
    told = {_PARTS[axis]: n for axis, n in zip(axes, shape, strict=False) if axis in _PARTS and len(axes) == len(shape)}
    if stacked := [length for length in shape[:-2] if length != 1]:  # else each page was written by itself
        told |= {"images": math.prod(stacked[:-1]), "slices": stacked[-1]}
    return "tifffile", told


def _imagej_words(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*?)[ \t\r]*$", text, re.MULTILINE))


def _count(words: Mapping[str, str], name: str, default: int = 1) -> int:
    value = words.get(name, "")
    return int(value) if re.fullmatch("[0-9]{1,18}", value) else default


def _elements(text: str, name: str) -> list[dict[str, str]]:
    """The attributes of each element of this name in OME-XML; none where it is damaged."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return []
    return [element.attrib for element in root.iter() if element.tag.rpartition("}")[2] == name]


def _mm(unit: str | int) -> float:
    """Millimetres of a unit; 0 if it is unknown."""
    if isinstance(unit, str):
        unit = unit.replace("\\u00B5", "u").replace("\N{MICRO SIGN}", "u").replace("\N{GREEK SMALL LETTER MU}", "u")
    return _MM.get(unit, 0.0)


def _number(value: Any) -> float:
    """What a description gives as a number; 0 where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0


def _completed(sizes: Sequence[float]) -> list[float]:
    known = [size if 0 < size < math.inf else 0.0 for size in sizes]
    return [size or max(known) or 1.0 for size in known]
