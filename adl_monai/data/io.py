"""Reading any scan, writing a denoised copy of it whole or not at all, and finding the scans of a folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from adl_monai.data.dicom import read_dicom
from adl_monai.data.dicom_header import DICOM_SUFFIXES, is_dicom_file
from adl_monai.data.geometry import same_affine
from adl_monai.data.itk import KINDS, plan_itk, plan_itk_from_affine, read_itk
from adl_monai.data.nifti import plan_nifti, plan_nifti_from_affine, read_nifti
from adl_monai.data.volume import Volume, WritePlan, plain_dtype, report_clipped
from adl_monai.errors import AdlError, OutputError, ScanFileError, UsageError

NIFTI_SUFFIXES = (".nii.gz", ".nii")
OUTPUT_SUFFIXES = (*NIFTI_SUFFIXES, ".mha", ".nrrd", ".png", ".tif", ".tiff")
INPUT_SUFFIXES = (*NIFTI_SUFFIXES, *KINDS, *DICOM_SUFFIXES)


def scan_suffix(path: Path) -> str:
    """The suffix of a scan's name in its own case, ``.nii.gz`` as one; empty if it is none that we read."""
    lowered = path.name.lower()
    for suffix in INPUT_SUFFIXES:
        if lowered.endswith(suffix):
            return path.name[-len(suffix) :]
    return ""


def scan_stem(path: Path) -> str:
    """The name without `scan_suffix`; dots inside it (a UID, a subject number) stay."""
    return path.name[: len(path.name) - len(scan_suffix(path))]


def scan_format(path: Path) -> str:
    """``nifti``, ``dicom``, ``mha``, ``nrrd``, ``png``, ``tiff``, ``jpeg``, ``bmp``, or empty for anything else."""
    if path.is_dir():
        return "dicom" if any(is_dicom_file(child) for child in path.iterdir()) else ""
    suffix = scan_suffix(path).lower()
    if suffix in NIFTI_SUFFIXES:
        return "nifti"
    if suffix in KINDS:
        return KINDS[suffix]
    return "dicom" if suffix in DICOM_SUFFIXES or is_dicom_file(path) else ""


def is_scan(path: Path) -> bool:
    """Whether `read_volume` would try to read this: a visible file of a known format, or a folder of DICOM files."""
    return path.exists() and not path.name.startswith(".") and bool(scan_format(path))


def find_scans(folder: Path) -> list[Path]:
    """The scans below a folder, sorted: files of known formats, and folders that hold DICOM files.

    A folder with DICOM files in it counts as one scan, the folder itself included. Hidden names are skipped and linked
    folders are not followed.

    Raises:
        UsageError: If a folder may not be listed.
    """
    try:
        return sorted(_walk(folder))
    except OSError as error:
        raise UsageError(
            f"{error.filename or folder}: cannot be listed ({error.strerror}); check its permissions."
        ) from error


def read_volume(path: Path | str, series: str | None = None) -> Volume:
    """Read a scan: a file of any known format, or a folder that holds one DICOM series.

    Args:
        path: The file or folder.
        series: SeriesInstanceUID or SeriesNumber, for a folder of several DICOM series.

    Raises:
        UsageError: If there is no such file, or a folder holds no series or several.
        ScanFileError: If the file is damaged or of a kind that is not supported.
        SeriesGeometryError: If the slices of a series do not form one volume.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder; check the name.")
    kind = "dicom" if path.is_dir() else scan_format(path)
    if kind == "nifti":
        return read_nifti(path)
    if kind == "dicom":
        return read_dicom(path, series)
    if kind:
        return read_itk(path)
    pair = " Convert .hdr/.img pairs to .nii.gz." if path.suffix.lower() in (".hdr", ".img") else ""
    raise ScanFileError(f"{path}: not a known scan; expected a DICOM file or one of {', '.join(INPUT_SUFFIXES)}.{pair}")


def check_output(path: Path, source: Path | None = None, overwrite: bool = False) -> None:
    """Refuse an output before any work is done for it.

    Args:
        path: The file to be written.
        source: The input it will be made from; the output may be neither it nor a link to it.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputError: If the format cannot be written, the folder is missing or read-only, or the file is in the way.
    """
    if scan_suffix(path).lower() not in OUTPUT_SUFFIXES:
        raise OutputError(f"{path}: cannot write this format; expected one of {', '.join(OUTPUT_SUFFIXES)}.")
    if path.is_dir():
        raise OutputError(f"{path}: this is a folder; name a file to write.")
    if source is not None and (path.resolve() == source.resolve() or _same_file(path, source)):
        raise OutputError(f"{path}: the output is the input {source}, or a link to it; choose another name.")
    if not overwrite and (path.exists() or path.is_symlink()):
        raise OutputError(f"{path}: this file exists; choose another name or allow overwriting.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: its folder does not exist or is not writable; make it, or choose another.")


def write_volume(
    path: Path | str,
    array: np.ndarray,
    *,
    like: Path | str | None,
    affine: np.ndarray,
    dtype: str | np.dtype = "same",
    series: str | None = None,
    overwrite: bool = True,
) -> int:
    """Write values as a denoised copy of a scan, whole or not at all.

    In the source's own format (``.nii`` and ``.nii.gz`` are one) its header is carried over; in another format the
    affine is written. The file appears under its name only after it was flushed, read back and found equal to what was
    meant in shape, affine, type and every voxel.

    Args:
        path: The file to write; its suffix (`OUTPUT_SUFFIXES`) is the format.
        array: Values in the source's index order and shape, (columns, rows[, slices]), finite.
        like: The source, or None where there is no file.
        affine: (4, 4) voxel to RAS mm of ``array``; must be the source's.
        dtype: ``same`` keeps the stored type (in another format: the integer type that holds the source's values if
            they are whole, else float32); or a type such as ``float32``.
        series: As in `read_volume`, where ``like`` is a folder of several series.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The number of voxels that did not fit the type and were saturated (also logged).

    Raises:
        OutputError: If the file cannot be written or would not hold what was meant; nothing is left behind.
    """
    path, like = Path(path), None if like is None else Path(like)
    check_output(path, like, overwrite)
    values = np.asarray(array, np.float32)
    plan = _plan(path, values, like, np.asarray(affine, np.float64), dtype, series)
    temporary = path.with_name(f".{secrets.token_hex(8)}{scan_suffix(path).lower()}")
    try:
        plan.save(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        _compare(plan, temporary, path)
        _publish(temporary, path, overwrite)
    except OSError as error:
        raise OutputError(
            f"{path}: could not be written ({error.strerror or error}); nothing was left behind."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    report_clipped(plan.clipped, plan.dtype, path)
    return plan.clipped


def _plan(
    path: Path, array: np.ndarray, like: Path | None, affine: np.ndarray, dtype: str | np.dtype, series: str | None
) -> WritePlan:
    kind = scan_format(path)
    if like is not None and scan_format(like) == kind:
        plan = plan_nifti(array, like, dtype) if kind == "nifti" else plan_itk(path, array, like, dtype)
        if plan.affine is not None and not same_affine(plan.affine, affine, 1e-3):
            raise OutputError(
                f"{path}: the array to write lies elsewhere than {like}; undo the spatial transforms first."
            )
        return plan
    if isinstance(dtype, str) and dtype == "same":
        dtype = np.dtype(np.float32) if like is None else plain_dtype(read_volume(like, series))
    if kind == "nifti":
        return plan_nifti_from_affine(array, affine, dtype)
    return plan_itk_from_affine(path, array, affine, dtype)


def _compare(plan: WritePlan, written: Path, path: Path) -> None:
    try:
        found = plan.load(written)
    except AdlError as error:
        raise OutputError(
            f"{path}: the file just written cannot be read back; the disk may be full or faulty."
        ) from error
    faults = []
    if not np.array_equal(found.array, plan.array):
        faults.append("voxels")
    if plan.affine is not None and not same_affine(found.affine, plan.affine, 1e-6):
        faults.append("affine")
    if found.dtype != plan.dtype:
        faults.append("type")
    if faults:
        raise OutputError(f"{path}: the file just written differs in {' and '.join(faults)} from what was meant.")


def _publish(temporary: Path, path: Path, overwrite: bool) -> None:
    """Give the finished file its name in one step; without ``overwrite`` only if nobody took the name meanwhile."""
    if not overwrite:
        try:
            os.link(temporary, path)
        except FileExistsError as error:
            raise OutputError(f"{path}: another process wrote this file meanwhile; it was left as it is.") from error
        except OSError:  # a file system without links
            if path.exists():
                raise OutputError(f"{path}: another process wrote this file meanwhile; it was left as it is.") from None
            temporary.replace(path)
    else:
        temporary.replace(path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _same_file(path: Path, source: Path) -> bool:
    return path.exists() and source.exists() and path.samefile(source)


def _walk(folder: Path) -> Iterator[Path]:
    if scan_format(folder):
        yield folder
    for child in folder.iterdir():
        if child.name.startswith("."):
            continue
        if child.is_dir():
            if not child.is_symlink():
                yield from _walk(child)
        elif scan_format(child) not in ("", "dicom"):
            yield child
