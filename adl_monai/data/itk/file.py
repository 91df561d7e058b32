"""The ITK door: MetaImage (.mha, and .mhd for reading only) and NRRD.

Arrays are indexed (x, y[, z]) as in NIfTI, the transpose of what SimpleITK hands out. A file written like a source is
that source's image with its voxels replaced, so spacing, origin, direction and the metadata dictionary stay ITK's own.
SimpleITK is imported inside the functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from adl_monai.data.formats import KINDS
from adl_monai.data.geometry import affine_fault, affine_from_itk, fits_in_itk_plane, itk_from_affine
from adl_monai.data.itk.checks import check_structure, check_voxel_bytes
from adl_monai.data.volume import Volume, WritePlan, plan_values, require_affine, require_shape
from adl_monai.data.voxels import keeps_type, quantise, to_float32, warn_lost_digits
from adl_monai.errors import OutputError, ScanFileError
from adl_monai.files import require_file

_IMAGE_IO = {"mha": "MetaImageIO", "nrrd": "NrrdImageIO"}
_QUIET_LOCK = Lock()
_QUIET: list[bool] = []  # one for each thread in `_quiet`: whether warnings were shown before the first


def read_itk(path: Path) -> Volume:
    """Read a grey 2D or 3D image.

    2D images stay 2D and lie in the plane z = 0.

    Raises:
        UsageError: If there is no such file.
        ScanFileError: If the file is damaged or cut short, is not 2D or 3D, has vector, colour or complex pixels, NaN
            or infinite values, or an unusable geometry.
    """
    volume = _read(path)
    warn_lost_digits(volume.array, volume.dtype, path)
    return volume


def plan_itk(path: Path, array: np.ndarray, like: Path, dtype: str | np.dtype) -> WritePlan:
    """Plan the source's image with other voxels.

    Args:
        path: Where the image will go; its suffix is the format, which is that of ``like``.
        array: Values, of the shape `read_itk` gave for ``like``.
        like: The source.
        dtype: ``same`` keeps the pixel type; metadata that has no text form is lost with any other.
    """
    import SimpleITK as sitk

    source, affine = _load(like)
    require_shape(array, source.GetSize(), like)
    own_type = sitk.GetArrayViewFromImage(source).dtype
    target_type = own_type if keeps_type(dtype) else np.dtype(dtype)
    stored, clipped = quantise(array, target_type.newbyteorder("="))
    image = sitk.GetImageFromArray(stored.T)
    image.CopyInformation(source)
    if target_type == own_type:
        source[(slice(None),) * array.ndim] = image  # keeps the metadata dictionary with its own types
        image = source
    else:
        for key in source.GetMetaDataKeys():
            if not source.GetMetaData(key).startswith("[UNKNOWN"):
                image.SetMetaData(key, source.GetMetaData(key))
    if image.HasMetaDataKey("ITK_InputFilterName"):
        image.EraseMetaData("ITK_InputFilterName")  # the reader's note to itself, not the file's
    return plan_values(_itk_saver(image), _kind(path), stored, clipped, affine, _read)


def plan_itk_from_affine(path: Path, array: np.ndarray, affine: np.ndarray, dtype: str | np.dtype) -> WritePlan:
    """Plan a new image from values and a RAS+ mm affine.

    Raises:
        OutputError: If the affine is unusable or, of a 2D image, a plane other than z = 0.
    """
    import SimpleITK as sitk

    require_affine(affine)
    stored, clipped = quantise(array, np.dtype(dtype).newbyteorder("="))
    image = sitk.GetImageFromArray(stored.T)
    origin, spacing, direction = itk_from_affine(affine, array.ndim)
    image.SetSpacing(spacing)
    if array.ndim == 2 and not fits_in_itk_plane(affine):
        raise OutputError(f"{path}: a 2D {_kind(path)} file cannot hold where this slice lies; write .nii.gz instead.")
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return plan_values(_itk_saver(image), _kind(path), stored, clipped, affine, _read)


def _itk_saver(image: Any) -> Callable[[Path], None]:
    import SimpleITK as sitk

    def write(path: Path) -> None:
        with _quiet():
            sitk.WriteImage(image, str(path), useCompression=True)

    return write


def _kind(path: Path) -> str:
    return KINDS[path.suffix.lower()]


def _read(path: Path) -> Volume:
    import SimpleITK as sitk

    image, affine = _load(path)
    stored = sitk.GetArrayFromImage(image).T
    return Volume(to_float32(stored, path), affine, stored.dtype, _kind(path), path)


def _load(path: Path) -> tuple[Any, np.ndarray]:
    """The SimpleITK image of a checked file and its affine."""
    import SimpleITK as sitk

    require_file(path)
    kind = _kind(path)
    check_structure(path, kind)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_IMAGE_IO[kind])  # the format its suffix promises, in any case (ITK knows .mha but not .MHA)
    with _quiet(), _refusing(path):
        reader.ReadImageInformation()
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    pixel_bytes = _pixel_bytes(reader.GetPixelID())
    if components != 1 or not pixel_bytes:
        raise ScanFileError(
            f"{path}: pixels are {sitk.GetPixelIDValueAsString(reader.GetPixelID())} with {components} components; "
            "expected one grey value a pixel. Convert colour images to grey, or split the components."
        )
    if len(size) not in (2, 3):
        raise ScanFileError(f"{path}: the image is {len(size)}D with shape {size}; expected one 2D or 3D image.")
    check_voxel_bytes(path, kind, math.prod(size) * pixel_bytes)
    with _quiet(), _refusing(path):
        image = reader.Execute()
    affine = affine_from_itk(image.GetOrigin(), image.GetSpacing(), image.GetDirection())
    if fault := affine_fault(affine):
        raise ScanFileError(f"{path}: the affine of spacing, origin and direction is {fault}; correct the header.")
    return image, affine


def _pixel_bytes(pixel_id: int) -> int:
    """Bytes of one real or integer pixel; 0 for any other SimpleITK pixel type."""
    import SimpleITK as sitk

    kinds = [(kind, bits) for kind in ("UInt", "Int", "Float") for bits in (8, 16, 32, 64)]
    return next((bits // 8 for kind, bits in kinds if getattr(sitk, f"sitk{kind}{bits}", None) == pixel_id), 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ITK's warnings off stderr, until the last thread in here has left."""
    import SimpleITK as sitk

    with _QUIET_LOCK:
        shown = _QUIET[0] if _QUIET else sitk.ProcessObject.GetGlobalWarningDisplay()
        _QUIET.append(shown)
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        with _QUIET_LOCK:
            _QUIET.pop()
            if not _QUIET:
                sitk.ProcessObject.SetGlobalWarningDisplay(shown)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn SimpleITK's errors, pages of C++ sources, into one sentence."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()[-160:]
        raise ScanFileError(
            f"{path}: ITK cannot read this file ({reason}); it is damaged or not what it says."
        ) from error
