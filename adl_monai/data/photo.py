"""Grey photographs, JPEG and BMP, for reading only.

Through Pillow: ITK fills the missing part of a truncated file with grey, and turns every BMP to colour.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from adl_monai.data.volume import require_file
from adl_monai.errors import ScanFileError


def load_photo(path: Path) -> np.ndarray:
    """The 8-bit grey pixels of a JPEG or BMP file, indexed (x, y).

    Raises:
        UsageError: If there is no such file.
        ScanFileError: If it is damaged, cut short or in colour.
    """
    from PIL import Image, UnidentifiedImageError

    require_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("JPEG", "BMP")) as image:
                if image.mode != "L":
                    raise ScanFileError(f"{path}: pixels are {image.mode}; expected 8-bit grey. Convert it to grey.")
                return np.array(image).T
    except UnidentifiedImageError as error:
        raise ScanFileError(f"{path}: this is not a JPEG or BMP file; it is damaged or of another format.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ScanFileError(f"{path}: the image is damaged, cut short or far too large ({error}).") from error
