"""Reading any scan, and writing a denoised copy of it whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from adl_monai.data.derivation import Derivation
from adl_monai.data.dicom.read import read_dicom
from adl_monai.data.dicom.write import plan_dicom
from adl_monai.data.formats import INPUT_SUFFIXES, output_format, scan_format
from adl_monai.data.geometry import same_affine
from adl_monai.data.itk.file import plan_itk, plan_itk_from_affine, read_itk
from adl_monai.data.missing_voxels import keeps_missing
from adl_monai.data.nifti.file import plan_nifti, plan_nifti_from_affine, read_nifti, reread_nifti
from adl_monai.data.output import check_output, publishing, sync
from adl_monai.data.pictures import plan_picture, plan_picture_from_affine, read_picture
from adl_monai.data.tiff.file import plan_tiff, plan_tiff_from_affine, read_tiff, warn_inverted
from adl_monai.data.volume import Volume, WritePlan, plain_dtype, require_shape
from adl_monai.data.voxels import count_not_finite, keeps_type, report_clipped
from adl_monai.errors import AdlError, OutputError, ScanFileError, UsageError

_ITK = (read_itk, plan_itk, plan_itk_from_affine)
_PICTURE = (read_picture, plan_picture, plan_picture_from_affine)
_DOORS: dict[str, tuple[Callable[..., Any], ...]] = {  # how a file is read, written like a source, and written anew
    "nifti": (read_nifti, plan_nifti, plan_nifti_from_affine), "mha": _ITK, "nrrd": _ITK,
    "png": _PICTURE, "jpeg": _PICTURE, "bmp": _PICTURE, "tiff": (read_tiff, plan_tiff, plan_tiff_from_affine),
}  # fmt: skip


def read_volume(path: Path | str, series: str | None = None, nan_policy: str = "refuse") -> Volume:
    """Read a scan: a file of any known format, or a folder that holds one DICOM series.

    Args:
        path: The file or folder.
        series: SeriesInstanceUID or SeriesNumber, for a folder of several DICOM series.
        nan_policy: What becomes of NaN and infinite voxels: ``refuse``, or ``keep`` them as padding, in NIfTI alone.

    Raises:
        UsageError: If there is no such file or policy, or a folder holds no series or several.
        ScanFileError: If the file is damaged or of a kind that is not supported.
        SeriesGeometryError: If the slices of a series do not form one volume.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder; check the name.")
    kind = "dicom" if path.is_dir() else scan_format(path)
    if kind == "dicom":
        return read_dicom(path, series)
    if kind == "nifti":
        return read_nifti(path, nan_policy)
    if kind:
        return cast(Volume, _DOORS[kind][0](path))
    pair = " Convert .hdr/.img pairs to .nii.gz." if path.suffix.lower() in (".hdr", ".img") else ""
    raise ScanFileError(f"{path}: not a known scan; expected a DICOM file or one of {', '.join(INPUT_SUFFIXES)}.{pair}")


def write_volume(
    path: Path | str,
    array: np.ndarray,
    *,
    like: Path | str | None,
    affine: np.ndarray,
    dtype: str | np.dtype = "same",
    series: str | None = None,
    overwrite: bool = True,
    derivation: Derivation | None = None,
    nan_policy: str = "refuse",
) -> int:
    """Write values as a denoised copy of a scan, whole or not at all.

    In the source's own format (``.nii`` and ``.nii.gz`` are one) its header is carried over; in another format the
    affine is written. The output appears under its name only after it was flushed, read back and found equal to what
    was meant in shape, affine, type and every voxel. The padding of a source is put back.

    Args:
        path: The file to write; its suffix (`OUTPUT_SUFFIXES`) is the format. Without a suffix, for a DICOM source, the
            folder of a derived DICOM series; with ``.dcm``, a derived DICOM file.
        array: Values in the source's index order and shape, (columns, rows[, slices]), finite.
        like: The source, or None where there is no file.
        affine: (4, 4) voxel to RAS mm of ``array``; must be the source's.
        dtype: ``same`` keeps the stored type (in another format: the integer type that holds the source's values if
            they are whole, else float32); or a type such as ``float32``.
        series: As in `read_volume`, where ``like`` is a folder of several series.
        overwrite: Whether an existing output may be replaced.
        derivation: What made the values, for formats that say so (DICOM).
        nan_policy: With which the source was read.

    Returns:
        The number of voxels that did not fit the type and were saturated (also logged).

    Raises:
        OutputError: If the file cannot be written or would not hold what was meant; nothing is left behind.
    """
    path, like = Path(path), None if like is None else Path(like)
    check_output(path, like, overwrite)
    values = np.asarray(array, np.float32)
    missing = None
    if like is not None and keeps_missing(nan_policy) and scan_format(like) == "nifti":
        values, missing = _put_back(path, values, reread_nifti(like))
    plan = _plan(path, values, like, np.asarray(affine, np.float64), dtype, series, derivation, missing)
    with publishing(path, overwrite) as temporary:
        plan.save(temporary)
        sync(temporary)
        _compare(plan, temporary, path)
    report_clipped(plan.clipped, plan.dtype, path, plan.bits)
    return plan.clipped


def _plan(
    path: Path,
    array: np.ndarray,
    like: Path | None,
    affine: np.ndarray,
    dtype: str | np.dtype,
    series: str | None,
    derivation: Derivation | None,
    missing: np.ndarray | None,
) -> WritePlan:
    kind = output_format(path)
    if like is not None and scan_format(like) == kind:
        if kind == "dicom":
            plan = plan_dicom(path, array, like, dtype, series, derivation)
        elif kind == "nifti":
            plan = plan_nifti(path, array, like, dtype, missing)
        else:
            plan = _DOORS[kind][1](path, array, like, dtype)
        if plan.affine is not None and not same_affine(plan.affine, affine, 1e-3):
            raise OutputError(
                f"{path}: the array to write lies elsewhere than {like}; undo the spatial transforms first."
            )
        return plan
    if like is not None and scan_format(like) == "dicom":
        source = read_dicom(like, series)
        if source.padding is not None and source.array.shape == array.shape:
            array = np.where(source.padding, source.array, array)
        dtype = plain_dtype(source) if keeps_type(dtype) else dtype
    elif keeps_type(dtype):
        dtype = np.dtype(np.float32) if like is None else plain_dtype(read_volume(like, series))
    if like is not None and scan_format(like) == "tiff":
        warn_inverted(path, like)
    return cast(WritePlan, _DOORS[kind][2](path, array, affine, dtype))


def _put_back(path: Path, array: np.ndarray, source: Volume) -> tuple[np.ndarray, np.ndarray | None]:
    """An array with the voxels of a NIfTI source that are no numbers, and where these are."""
    if source.padding is None:
        return array, None
    if output_format(path) != "nifti":
        raise OutputError(f"{path}: NaN voxels are kept in NIfTI alone; name a .nii.gz file (-o).")
    require_shape(array, source.array.shape, source.path)
    if broken := count_not_finite(array[~source.padding]):
        raise OutputError(f"{broken} of {array.size} values to write are NaN or infinite; nothing was written.")
    return np.where(source.padding, source.array, array), source.padding


def _compare(plan: WritePlan, written: Path, path: Path) -> None:
    try:
        found = plan.load(written)
    except AdlError as error:
        raise OutputError(
            f"{path}: the file just written cannot be read back; the disk may be full or faulty."
        ) from error
    faults = []
    if not np.array_equal(found.array, plan.array, equal_nan=True):
        faults.append("voxels")
    if plan.affine is not None and not same_affine(found.affine, plan.affine, 1e-6):
        faults.append("affine")
    if found.dtype != plan.dtype:
        faults.append("type")
    if faults:
        raise OutputError(f"{path}: the file just written differs in {' and '.join(faults)} from what was meant.")
