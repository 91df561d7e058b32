"""Grey pictures through Pillow: PNG and, for reading only, JPEG and BMP. It refuses what is damaged or cut short."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adl_monai.data.geometry import lps_to_ras
from adl_monai.data.volume import Volume, WritePlan, bare_spacing, plan_values, require_shape
from adl_monai.data.voxels import keeps_type, quantise, to_float32
from adl_monai.errors import AdlError, OutputError, ScanFileError
from adl_monai.files import require_file

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP"}
_GREY = {"L": "uint8", "I;16": "uint16"}


def read_picture(path: Path) -> Volume:
    """The pixels, indexed (x, y), in the plane z = 0; of 1 mm where a PNG names no resolution, and in JPEG and BMP.

    Raises:
        UsageError: If there is no such file.
        ScanFileError: If it is damaged, cut short, in colour, or with transparency.
    """
    stored, resolution = _load(path)
    sizes = [1000 / one if one else 1.0 for one in resolution]
    affine = lps_to_ras(np.diag([*sizes, 1.0, 1.0]))
    return Volume(to_float32(stored, path), affine, stored.dtype, _FORMATS[path.suffix.lower()].lower(), path)


def plan_picture(path: Path, array: np.ndarray, like: Path, dtype: str | np.dtype) -> WritePlan:
    """Plan a PNG with the resolution of ``like``, another PNG."""
    source, resolution = _load(like)
    require_shape(array, source.shape, like)
    return _plan(array, source.dtype if keeps_type(dtype) else np.dtype(dtype), resolution)


def plan_picture_from_affine(path: Path, array: np.ndarray, affine: np.ndarray, dtype: str | np.dtype) -> WritePlan:
    """Plan a new PNG, which keeps the pixel size alone, as whole pixels a metre."""
    size = bare_spacing(affine, path)
    return _plan(array, np.dtype(dtype), [min(round(1000 / one), 2**31 - 1) for one in size[:2]])


def _plan(array: np.ndarray, dtype: np.dtype, resolution: Sequence[int]) -> WritePlan:
    if dtype.name not in _GREY.values():
        raise OutputError(f"png files hold uint8, uint16; got {dtype.name}. Write .mha or .nii.gz instead.")
    if array.ndim != 2:
        raise OutputError(f"png files cannot hold shape {array.shape}; write .mha or .nii.gz instead.")
    stored, clipped = quantise(array, dtype.newbyteorder("="))

    def write(path: Path) -> None:
        from PIL import Image

        dpi = {"dpi": [one * 0.0254 for one in resolution]} if any(resolution) else {}
        Image.fromarray(np.ascontiguousarray(stored.T)).save(path, "PNG", **dpi)

    return plan_values(write, "png", stored, clipped, None, read_picture)


def _load(path: Path) -> tuple[np.ndarray, list[int]]:
    """The stored pixels, and a PNG's resolution, in pixels a metre along x and y; zeros if it has none."""
    from PIL import Image

    require_file(path)
    kind = _FORMATS[path.suffix.lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=[kind]) as image:
                image.verify()  # the checksums of PNG, which loading leaves out
            with Image.open(path, formats=[kind]) as image:
                lucid = " with transparency" if "transparency" in image.info else ""
                if image.mode not in _GREY or lucid or getattr(image, "n_frames", 1) > 1:
                    raise ScanFileError(
                        f"{path}: pixels are {image.mode}{lucid}; expected one grey value of 8 or 16 bits a pixel and "
                        "one picture. Convert the image to grey, without transparency."
                    )
                dpi = image.info.get("dpi", (0, 0)) if kind == "PNG" else (0, 0)
                return np.array(image).T, [round(one / 0.0254) for one in dpi]
    except (AdlError, MemoryError):
        raise
    except Exception as error:  # of many kinds, as many as there are ways to damage a file
        raise ScanFileError(
            f"{path}: this {kind} file is damaged, cut short, far too large or of another format ({str(error)[:160]})."
        ) from error
