"""The DICOM door: one file, or a folder that holds one series of single-frame images, read strictly with pydicom.

Arrays are indexed (column, row[, slice]), the order of NIfTI and ITK. MONOCHROME1 images keep their stored values (no
inversion), so an output has its input's convention. Messages name files and series UIDs, never patients.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adl_monai.data.dicom_header import SliceHeader, discreet, parse, read_header
from adl_monai.data.dicom_series import order_slices, plane_affine
from adl_monai.data.volume import Volume, logger, require_file, to_float32, warn_lost_digits
from adl_monai.errors import ScanFileError, SeriesGeometryError, UsageError


def read_dicom(path: Path, series: str | None = None) -> Volume:
    """Read one image (2D), or the slices of one series in a folder, sorted along their normal (3D).

    A series of one image is 2D. Files of a folder that are not DICOM images are skipped and counted in the log; exact
    copies of a slice are dropped. RescaleSlope and RescaleIntercept are applied slice by slice.

    Args:
        path: A file or a folder; sub-folders are not read.
        series: The SeriesInstanceUID or SeriesNumber to take where a folder holds several series.

    Raises:
        UsageError: If the folder holds no image, or several series and ``series`` names none or several of them.
        ScanFileError: If a file is damaged, compressed in a way that cannot be decoded here, multi-frame or colour.
        SeriesGeometryError: If the slices do not form one regular volume.
    """
    if path.is_dir():
        headers = _choose_series(_folder_headers(path), series, path)
    else:
        require_file(path)
        header = read_header(path)
        if header is None:
            raise ScanFileError(f"{path}: this is not a DICOM image; expected a file with pixels.")
        headers = [header]
    for header in headers:
        if header.fault:
            raise ScanFileError(header.fault)
    volume = _read_single(headers[0], path) if len(headers) == 1 else _read_stack(headers, path)
    warn_lost_digits(volume.array, volume.dtype, path, min(abs(header.slope) for header in headers))
    return volume


def _read_single(header: SliceHeader, path: Path) -> Volume:
    stored = _read_pixels(header)
    return Volume(_rescale(stored, header), plane_affine(header), stored.dtype, "dicom", path)


def _read_stack(headers: list[SliceHeader], path: Path) -> Volume:
    places, affine = order_slices(headers)
    array = np.empty((headers[0].columns, headers[0].rows, len(places)), np.float32)
    dtypes = set()
    for index, place in enumerate(places):
        stored = _read_pixels(place[0])
        for copy in place[1:]:
            if (copy.slope, copy.intercept) != (place[0].slope, place[0].intercept) or not np.array_equal(
                _read_pixels(copy), stored
            ):
                raise SeriesGeometryError(
                    f"{place[0].path} and {copy.path.name} differ but lie at one place (time points, echoes). "
                    "Put each volume into a folder of its own."
                )
        array[..., index] = _rescale(stored, place[0])
        dtypes.add(stored.dtype)
    if len(places) < len(headers):
        logger.warning("%s: %d exact copies of slices were dropped.", path, len(headers) - len(places))
    if len(places) == 1:
        array = np.ascontiguousarray(array[..., 0])
    return Volume(array, affine, np.result_type(*dtypes), "dicom", path)


def _rescale(stored: np.ndarray, header: SliceHeader) -> np.ndarray:
    return to_float32(stored, header.path, header.slope, header.intercept)


def _folder_headers(folder: Path) -> list[SliceHeader]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    headers = [header for path in files if (header := read_header(path)) is not None]
    if not headers:
        raise UsageError(f"{folder}: no DICOM image among {len(files)} files; name the folder that holds the slices.")
    if len(headers) < len(files):
        logger.info("%s: %d of %d files are not DICOM images; skipped.", folder, len(files) - len(headers), len(files))
    return headers


def _choose_series(headers: list[SliceHeader], series: str | None, folder: Path) -> list[SliceHeader]:
    groups: dict[str, list[SliceHeader]] = {}
    for header in headers:
        groups.setdefault(header.series_uid, []).append(header)
    chosen = [
        group
        for uid, group in groups.items()
        if series is None or series in (uid, "" if group[0].series_number is None else str(group[0].series_number))
    ]
    if len(chosen) == 1:
        return chosen[0]
    lines = sorted(
        f"SeriesNumber {group[0].series_number}, {group[0].modality}, {len(group)} images, {uid}"
        for uid, group in groups.items()
    )
    asked = "several series" if series is None else f"{len(chosen)} series called {series!r}"
    raise UsageError(
        f"{folder}: {asked} in this folder; choose one by its SeriesInstanceUID or SeriesNumber (--series):\n  "
        + "\n  ".join(lines)
    )


def _read_pixels(header: SliceHeader) -> np.ndarray:
    """Stored values, indexed (column, row); pydicom drops overlay bits above BitsStored and extends the sign."""
    path, syntax = header.path, "an unknown transfer syntax"
    try:
        with discreet():
            dataset = parse(path, pixels=True)
            assert dataset is not None
            syntax = dataset.file_meta.TransferSyntaxUID.name
            needed = header.rows * header.columns * (int(dataset.BitsAllocated) // 8)
            held = len(dataset.get("PixelData", b""))
            if held == 0 or (held < needed and not dataset.file_meta.TransferSyntaxUID.is_compressed):
                raise ScanFileError(f"{path}: PixelData holds {held} bytes of {needed}; the file is cut short.")
            if not dataset.file_meta.TransferSyntaxUID.is_compressed and any(dataset.PixelData[needed + needed % 2 :]):
                raise ScanFileError(
                    f"{path}: PixelData holds {held} bytes, Rows and Columns claim {needed}; the header is damaged."
                )
            stored = dataset.pixel_array
    except (ScanFileError, MemoryError):
        raise
    except Exception as error:  # decoders raise nearly anything on damaged files, and may quote them
        raise ScanFileError(
            f"{path}: the pixels ({syntax}) cannot be decoded ({type(error).__name__}): the file is damaged, or the "
            "decoder is not installed (pylibjpeg, pyjpegls or python-gdcm bring more)."
        ) from None
    if stored.shape != (header.rows, header.columns):
        raise ScanFileError(f"{path}: the pixels have shape {stored.shape}; expected {(header.rows, header.columns)}.")
    return stored.T
