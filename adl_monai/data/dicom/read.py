"""The DICOM door for reading: one file, or a folder that holds one series, strictly, with pydicom.

Single-frame images and enhanced multi-frame ones (CT, MR, PET) are read alike, plane by plane. Arrays are indexed
(column, row[, slice]), the order of NIfTI and ITK. MONOCHROME1 images keep their stored values (no inversion), so an
output has its input's convention. Messages name files and, where a series is to be chosen, series UIDs; never patients.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adl_monai.data.dicom.header import SliceHeader, read_headers
from adl_monai.data.dicom.pixels import PixelReader
from adl_monai.data.dicom.series import order_slices, plane_affine
from adl_monai.data.volume import Volume
from adl_monai.data.voxels import to_float32, warn_lost_digits
from adl_monai.errors import ScanFileError, SeriesGeometryError, UsageError
from adl_monai.files import require_file

logger = logging.getLogger("adl_monai")


@dataclass(frozen=True, eq=False)
class Stack:
    """Where the planes of one series lie.

    Attributes:
        places: The planes at each place along the normal, in order. Those at one place must be copies of one another.
        affine: (4, 4) voxel index to RAS+ mm.
    """

    places: list[list[SliceHeader]]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(columns, rows[, slices])."""
        first = self.places[0][0]
        return (first.columns, first.rows, len(self.places))[: 2 if len(self.places) == 1 else 3]


def read_dicom(path: Path, series: str | None = None) -> Volume:
    """Read one image (2D), or the planes of a series in a folder or a multi-frame file, sorted along their normal (3D).

    A series of one plane is 2D. Files of a folder that are not DICOM images are skipped and counted in the log; exact
    copies of a plane are dropped. RescaleSlope and RescaleIntercept are applied plane by plane, a Modality LUT instead
    where there is one.

    Args:
        path: A file or a folder; sub-folders are not read.
        series: The SeriesInstanceUID or SeriesNumber to take where a folder holds several series.

    Raises:
        UsageError: If the folder holds no image, or several series and ``series`` names none or several of them.
        ScanFileError: If a file is damaged, compressed in a way that cannot be decoded here, a cine or colour.
        SeriesGeometryError: If the planes do not form one regular volume.
    """
    stack = locate(path, series)
    volume = read_stack(stack, path)
    headers = [header for place in stack.places for header in place]
    first = headers[0]
    if volume.array.ndim == 2 and (first.position is None or first.orientation is None):
        logger.warning("%s: no ImagePositionPatient or ImageOrientationPatient; placed at the origin.", path)
    if len(headers) > len(stack.places):
        logger.warning("%s: %d exact copies of slices were dropped.", path, len(headers) - len(stack.places))
    if any(header.burned_in for header in headers):
        logger.warning(
            "%s: BurnedInAnnotation is YES: text in the pixels may name the patient, and stays in a denoised copy.",
            path,
        )
    warn_lost_digits(volume.array, volume.dtype, path, min(abs(header.slope) for header in headers))
    return volume


def locate(path: Path, series: str | None = None) -> Stack:
    """Find the planes of one series and put them in order, by their headers alone; raises as `read_dicom` does."""
    if path.is_dir():
        headers = _choose_series(_folder_headers(path), series, path)
    else:
        require_file(path)
        headers = read_headers(path)
        if not headers:
            raise ScanFileError(f"{path}: this is not a DICOM image; expected a file with pixels.")
    for header in headers:
        if header.fault:
            raise ScanFileError(header.fault)
    if len(headers) == 1:
        return Stack([headers], plane_affine(headers[0]))
    return Stack(*order_slices(headers))


def name_series(folder: Path) -> dict[str, str]:
    """The series in a folder, by SeriesInstanceUID, each with a name of its own that tells nothing of the patient.

    It is the SeriesNumber, ``x`` for none; of several series with one number, each has its place among them behind it.
    What this program made of others is left out with a warning, unless there is nothing else.

    Raises:
        UsageError: If the folder holds no image.
        ScanFileError: If a file is damaged: whose slice it is, nobody can tell.
    """
    groups = _by_series(_folder_headers(folder))
    sources = {uid: group for uid, group in groups.items() if not any(header.made_here for header in group)} or groups
    if len(sources) < len(groups):
        logger.warning("%s: %d series that were denoised already are left out.", folder, len(groups) - len(sources))
    alike: dict[str, list[str]] = {}
    for uid in sorted(sources):
        number = sources[uid][0].series_number
        alike.setdefault("x" if number is None else str(number), []).append(uid)
    return {
        uid: number if len(uids) == 1 else f"{number}_{place}"
        for number, uids in alike.items()
        for place, uid in enumerate(uids, 1)
    }


def read_stack(stack: Stack, path: Path) -> Volume:
    """The values of located planes, without a word of what is odd about them; ``path`` is the volume's."""
    array = np.empty((*stack.shape[:2], len(stack.places)), np.float32)
    padding = np.zeros(array.shape, bool)
    dtypes, pixels = set(), PixelReader()
    for index, place in enumerate(stack.places):
        stored, padded = pixels.read(place[0])
        for copy in place[1:]:
            if (copy.slope, copy.intercept) != (place[0].slope, place[0].intercept) or not np.array_equal(
                pixels.read(copy)[0], stored
            ):
                raise SeriesGeometryError(
                    f"{place[0].label} and {copy.name} differ but lie at one place (time points, echoes). "
                    "Put each volume into a folder of its own."
                )
        array[..., index] = to_float32(stored, place[0].path, place[0].slope, place[0].intercept)
        padding[..., index] = False if padded is None else padded
        dtypes.add(stored.dtype)
    array, padding = (np.ascontiguousarray(a.reshape(stack.shape)) for a in (array, padding))
    modality = stack.places[0][0].modality
    padded_at = padding if padding.any() else None
    return Volume(array, stack.affine, np.result_type(*dtypes), "dicom", path, padded_at, modality)


def _folder_headers(folder: Path) -> list[SliceHeader]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    images = [headers for path in files if (headers := read_headers(path))]
    if not images:
        raise UsageError(f"{folder}: no DICOM image among {len(files)} files; name the folder that holds the slices.")
    if len(images) < len(files):
        logger.info("%s: %d of %d files are not DICOM images; skipped.", folder, len(files) - len(images), len(files))
    return [header for headers in images for header in headers]


def _choose_series(headers: list[SliceHeader], series: str | None, folder: Path) -> list[SliceHeader]:
    groups = _by_series(headers)
    chosen = [
        group
        for uid, group in groups.items()
        if series is None or series in (uid, "" if group[0].series_number is None else str(group[0].series_number))
    ]
    if len(chosen) == 1:
        return chosen[0]
    # No SeriesDescription: people write names into it.
    lines = sorted(
        f"SeriesNumber {group[0].series_number}, {group[0].modality}, {group[0].rows} x {group[0].columns} pixels, "
        f"{len(group)} images, {uid}"
        for uid, group in groups.items()
    )
    asked = "several series" if series is None else f"{len(chosen)} series called {series!r}"
    raise UsageError(
        f"{folder}: {asked} in this folder; choose one by its SeriesInstanceUID or SeriesNumber (--series), or take "
        "each with --series all:\n  " + "\n  ".join(lines)
    )


def _by_series(headers: list[SliceHeader]) -> dict[str, list[SliceHeader]]:
    groups: dict[str, list[SliceHeader]] = {}
    for header in headers:
        groups.setdefault(header.series_uid, []).append(header)
    return groups
