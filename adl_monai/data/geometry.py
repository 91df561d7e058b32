"""Where voxels lie: the one place that knows about axis conventions.

Inside the package every image has a (4, 4) float64 affine from voxel index to **RAS+** millimetres, as in NIfTI. DICOM
and ITK speak **LPS+**: their first two world axes point the other way. Nothing else in the package converts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_FLIP_LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_ORTHONORMAL = 1e-3  # as far as scalar products may be from 0 and 1
_SINGULAR = 1e-6  # volume of the unit axes' parallelepiped below which they count as coplanar


def lps_to_ras(affine: np.ndarray) -> np.ndarray:
    """Turn a (4, 4) affine into LPS+ mm (DICOM, ITK) into one into RAS+ mm (NIfTI)."""
    return _FLIP_LPS_RAS @ affine


def ras_to_lps(affine: np.ndarray) -> np.ndarray:
    """Turn a (4, 4) affine into RAS+ mm (NIfTI) into one into LPS+ mm (DICOM, ITK)."""
    return _FLIP_LPS_RAS @ affine


def spacing_from_affine(affine: np.ndarray) -> tuple[float, float, float]:
    """Distance in mm between neighbouring voxels along each of the three index axes."""
    lengths = np.linalg.norm(np.asarray(affine, np.float64)[:3, :3], axis=0)
    return float(lengths[0]), float(lengths[1]), float(lengths[2])


def affine_fault(affine: np.ndarray) -> str | None:
    """What makes an affine unusable (``not finite``, ``singular``), or None."""
    if not np.isfinite(affine).all():
        return "not finite"
    axes = affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if (lengths == 0).any() or abs(np.linalg.det(axes / lengths)) < _SINGULAR:
        return "singular"
    return None


def complete_plane(affine: np.ndarray) -> np.ndarray:
    """Give a single slice whose file names no slice axis a unit one, perpendicular to its plane."""
    if not np.isfinite(affine).all() or affine[:3, 2].any():
        return affine
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    length = np.linalg.norm(normal)
    if length == 0:
        return affine
    completed = affine.copy()
    completed[:3, 2] = normal / length
    return completed


def same_affine(first: np.ndarray, second: np.ndarray, tolerance: float = 1e-4) -> bool:
    """Whether two affines agree to ``tolerance``, relative and in mm."""
    return bool(np.allclose(first, second, rtol=tolerance, atol=tolerance))


def affine_from_itk(origin: Sequence[float], spacing: Sequence[float], direction: Sequence[float]) -> np.ndarray:
    """The RAS+ affine of an ITK image of 2 or 3 dimensions.

    Args:
        origin: Position of the first voxel, LPS+ mm; 2 or 3 numbers.
        spacing: Voxel size in mm; as many numbers.
        direction: Row-major direction matrix; 4 or 9 numbers. A 2D image lies in the plane z = 0.
    """
    dims = len(origin)
    affine = np.eye(4)
    affine[:dims, :dims] = np.reshape(direction, (dims, dims)) * np.asarray(spacing, np.float64)
    affine[:dims, 3] = origin
    return lps_to_ras(affine)


def itk_from_affine(affine: np.ndarray, dims: int) -> tuple[list[float], list[float], list[float]]:
    """ITK's origin, spacing and row-major direction (LPS+, mm) of a RAS+ affine; the inverse of `affine_from_itk`."""
    lps = ras_to_lps(affine)
    spacing = np.asarray(spacing_from_affine(affine))[:dims]
    direction = lps[:dims, :dims] / spacing
    return lps[:dims, 3].tolist(), spacing.tolist(), direction.ravel().tolist()


def fits_in_itk_plane(affine: np.ndarray) -> bool:
    """Whether a 2D ITK image (the plane z = 0, no tilt) can hold this affine."""
    return not (affine[2, :2].any() or affine[:2, 2].any() or affine[2, 3])


def slice_normal(orientation: np.ndarray) -> np.ndarray:
    """Unit vector along which DICOM slices stack: row direction x column direction, LPS+.

    Args:
        orientation: ImageOrientationPatient, 6 numbers.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / np.linalg.norm(normal)


def is_orthonormal(orientation: np.ndarray) -> bool:
    """Whether ImageOrientationPatient holds two perpendicular unit vectors."""
    rows, columns = orientation[:3], orientation[3:]
    products = np.array([rows @ rows - 1, columns @ columns - 1, rows @ columns])
    return bool(np.isfinite(products).all() and (np.abs(products) < _ORTHONORMAL).all())


def affine_from_dicom(
    position: np.ndarray, orientation: np.ndarray, pixel_spacing: np.ndarray, slice_spacing: float
) -> np.ndarray:
    """The RAS+ affine of DICOM planes indexed (column, row, slice).

    PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1: the column index moves along the first three numbers of
    ImageOrientationPatient by PixelSpacing[1], the row index along the last three by PixelSpacing[0].

    Args:
        position: ImagePositionPatient of the first slice, LPS+ mm.
        orientation: ImageOrientationPatient, 6 numbers.
        pixel_spacing: PixelSpacing (between rows, between columns) in mm.
        slice_spacing: Distance in mm between slices along `slice_normal`.
    """
    affine = np.eye(4)
    affine[:3, 0] = orientation[:3] * pixel_spacing[1]
    affine[:3, 1] = orientation[3:] * pixel_spacing[0]
    affine[:3, 2] = slice_normal(orientation) * slice_spacing
    affine[:3, 3] = position
    return lps_to_ras(affine)
