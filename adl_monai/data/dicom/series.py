"""Which DICOM slices form one regular volume, in which order and at which distance; refuse rather than guess.

Only headers here, no pixels. Messages name files and lengths, never patients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adl_monai.data.dicom.header import SliceHeader
from adl_monai.data.geometry import affine_from_dicom, is_orthonormal, lps_to_ras, slice_normal
from adl_monai.errors import SeriesGeometryError

_SAME_PLACE_MM = 1e-3
_SAME_DIRECTION = 1e-4  # as far as two slices' direction cosines may differ
_DRIFT = 0.1  # of a pixel: how far a slice may lie beside the line along the normal
_EVEN = 0.02  # of a slice distance: rounding of positions


def plane_affine(header: SliceHeader) -> np.ndarray:
    """The RAS+ mm affine of a single image.

    Without a position (radiographs) it lies at the origin, axial, with pixels of 1 mm where no size, or 0, is given.
    """
    step = header.slice_step or 1.0
    if header.position is None or header.orientation is None:
        given = header.pixel_spacing
        spacing = np.ones(2) if given is None or not given.any() else _spacing(header)
        return lps_to_ras(np.diag([spacing[1], spacing[0], step, 1.0]))
    spacing = np.ones(2) if header.pixel_spacing is None else _spacing(header)
    return affine_from_dicom(_position(header), _orientation(header), spacing, step)


def order_slices(headers: Sequence[SliceHeader]) -> tuple[list[list[SliceHeader]], np.ndarray]:
    """Sort the slices of one series along their normal and check that they form a regular grid.

    Args:
        headers: Two or more slices of one series, in any order.

    Returns:
        One list of headers per place, in order, with more than one where several files lie at the same place (a
        caller accepts these only if their pixels are equal), and the (4, 4) RAS+ mm affine of the stack.

    Raises:
        SeriesGeometryError: If patients, frames of reference, sizes, orientations or pixel sizes are mixed, a position
            is missing, the stack is tilted, a slice is missing or the distances are uneven.
    """
    first = headers[0]
    _require_one([header.patient_id for header in headers], headers, "PatientID")
    _require_one([header.frame_of_reference for header in headers], headers, "FrameOfReferenceUID")
    _require_one([(header.rows, header.columns) for header in headers], headers, "Rows and Columns", show=True)
    orientation, spacing = _orientation(first), _spacing(first)
    for header in headers[1:]:
        if np.abs(_orientation(header) - orientation).max() > _SAME_DIRECTION:
            raise SeriesGeometryError(
                _mixed("ImageOrientationPatient", first, header) + " A localizer may be among them."
            )
        if not np.allclose(_spacing(header), spacing, rtol=1e-4):
            raise SeriesGeometryError(_mixed("PixelSpacing", first, header))
    positions = np.array([_position(header) for header in headers])
    normal = slice_normal(orientation)
    offsets = (positions - positions[0]) @ normal
    _refuse_tilt(positions, offsets, normal, spacing, headers)
    order = np.argsort(offsets, kind="stable")
    places: list[list[SliceHeader]] = []
    place_offsets: list[float] = []
    for index in order:
        if place_offsets and offsets[index] - place_offsets[-1] < _SAME_PLACE_MM:
            places[-1].append(headers[index])
        else:
            places.append([headers[index]])
            place_offsets.append(float(offsets[index]))
    if len(places) == 1:
        return places, plane_affine(places[0][0])
    step = _even_step(np.diff(place_offsets), [place[0] for place in places])
    return places, affine_from_dicom(positions[order[0]], orientation, spacing, step)


def _refuse_tilt(
    positions: np.ndarray, offsets: np.ndarray, normal: np.ndarray, spacing: np.ndarray, headers: Sequence[SliceHeader]
) -> None:
    drift = np.linalg.norm(positions - positions[0] - np.outer(offsets, normal), axis=1)
    worst = int(drift.argmax())
    if drift[worst] <= _DRIFT * spacing.min():
        return
    length = abs(float(offsets[worst]))
    angle = np.degrees(np.arctan2(drift[worst], length))
    raise SeriesGeometryError(
        f"{headers[worst].label}: this slice lies {drift[worst]:.2f} mm beside the normal of {headers[0].name} "
        f"({angle:.1f} degrees): the gantry was tilted or the slices do not form one stack. Resample the series to a "
        "rectangular grid first (dcm2niix does)."
    )


def _even_step(gaps: np.ndarray, ordered: Sequence[SliceHeader]) -> float:
    """The one distance between neighbouring slices in mm."""
    smallest, widest = float(gaps.min()), int(gaps.argmax())
    if gaps[widest] - smallest <= _EVEN * float(np.median(gaps)) + _SAME_PLACE_MM:
        return float(gaps.mean())
    where = f"between {ordered[widest].label} and {ordered[widest + 1].name}"
    multiples = gaps / smallest
    if gaps[widest] > 1.5 * smallest and np.abs(multiples - np.rint(multiples)).max() <= 0.1:
        raise SeriesGeometryError(
            f"slice missing: {gaps[widest]:.3f} mm {where}, where other slices are {smallest:.3f} mm apart. "
            "Copy the series again from its source, or take the complete part of it."
        )
    raise SeriesGeometryError(
        f"uneven slices: {gaps[widest]:.3f} mm {where}, {smallest:.3f} mm elsewhere; expected one distance. "
        "Resample the series to even slices first (dcm2niix does)."
    )


def _require_one(values: list[object], headers: Sequence[SliceHeader], name: str, show: bool = False) -> None:
    for value, header in zip(values, headers, strict=True):
        if value != values[0]:
            detail = f" ({values[0]} and {value})" if show else ""
            raise SeriesGeometryError(_mixed(name, headers[0], header, detail))


def _mixed(name: str, first: SliceHeader, other: SliceHeader, detail: str = "") -> str:
    return (
        f"{first.label} and {other.name} differ in {name}{detail}; expected one volume. Put the images that belong "
        "together into a folder of their own."
    )


def _position(header: SliceHeader) -> np.ndarray:
    if header.position is None or header.position.shape != (3,) or not np.isfinite(header.position).all():
        raise SeriesGeometryError(f"{header.label}: ImagePositionPatient is missing or not 3 numbers; cannot place it.")
    return header.position


def _orientation(header: SliceHeader) -> np.ndarray:
    orientation = header.orientation
    if orientation is None or orientation.shape != (6,) or not is_orthonormal(orientation):
        given = "missing" if orientation is None else "not two perpendicular unit vectors"
        raise SeriesGeometryError(f"{header.label}: ImageOrientationPatient is {given}; correct the header.")
    return orientation


def _spacing(header: SliceHeader) -> np.ndarray:
    spacing = header.pixel_spacing
    if spacing is None or spacing.shape != (2,) or not (np.isfinite(spacing).all() and (spacing > 0).all()):
        given = "missing" if spacing is None else "not two positive numbers"
        raise SeriesGeometryError(f"{header.label}: PixelSpacing is {given}; the voxel size is unknown.")
    return spacing
