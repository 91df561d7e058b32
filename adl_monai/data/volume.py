"""A scan in memory, and the voxel arithmetic that every reader and writer shares.

Stored voxels become values by ``value = stored * slope + inter`` and values become stored voxels by the inverse,
rounded and saturated. Both directions live here once, so a writer can say beforehand what a reader must find.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adl_monai.data.geometry import affine_fault, lps_to_ras, same_affine, spacing_from_affine
from adl_monai.errors import OutputError, ScanFileError, UsageError

logger = logging.getLogger("adl_monai")

FEWEST_STEPS = 4096
"""Of float32 within the range of an image, below which contrasts are visibly rounded: 12 bits, as scanners store.

A file with fewer is warned of; an array is refused, as its caller can subtract an offset at once.
"""

_BLOCK = 16  # slices converted at a time, so that no float64 copy of a whole scan exists


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan: its values, where they lie in the patient, and how the file stored them.

    Attributes:
        array: float32 values (slope and intercept applied) in stored index order: (columns, rows[, slices]) for every
            format, without a channel axis, C-contiguous.
        affine: (4, 4) float64, voxel index to RAS+ millimetres; for 2D images too.
        dtype: The type of the voxels on disk; with its byte order for NIfTI, else native.
        format: ``nifti``, ``dicom``, ``mha``, ``nrrd``, ``png``, ``tiff``, ``jpeg``, ``bmp`` or ``synthetic``.
        path: The file or, for a DICOM series, the folder.
        padding: Where a DICOM source says "no image here" (PixelPaddingValue), of the array's shape; None if nowhere.
            These voxels mean nothing: a model must not see them, and an output gives them back.
        modality: DICOM's ``CT``, ``MR``, ``PT``, ...; empty where the file names none, as in every other format.
    """

    array: np.ndarray
    affine: np.ndarray
    dtype: np.dtype
    format: str
    path: Path
    padding: np.ndarray | None = None
    modality: str = ""

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in mm, one number per axis of ``array``."""
        return spacing_from_affine(self.affine)[: self.array.ndim]

    def without_padding(self) -> np.ndarray:
        """The array with padding replaced by the smallest value of the image proper, which a model may see."""
        if self.padding is None or self.padding.all():
            return self.array
        return np.where(self.padding, self.array[~self.padding].min(), self.array)

    def with_padding_of(self, source: Volume) -> Volume:
        """This volume with the padding of another of the same shape put back."""
        if source.padding is None:
            return self
        return replace(self, array=np.where(source.padding, source.array, self.array), padding=source.padding)

    def save(
        self,
        path: Path | str,
        *,
        dtype: str | np.dtype = "same",
        series: str | None = None,
        overwrite: bool = False,
    ) -> int:
        """Write ``array`` as a denoised copy of the source at ``self.path``: see ``adl_monai.data.io.write_volume``.

        Args:
            path: The file, or the folder of a DICOM series.
            dtype: ``same`` as the source, or a type such as ``float32``.
            series: As in ``read_volume``, where the source is a folder of several DICOM series.
            overwrite: Replace an existing output.

        Returns:
            The number of voxels that did not fit the type and were saturated.

        Raises:
            OutputError: If the output exists or cannot be written; nothing is left behind.
        """
        from adl_monai.data.io import write_volume  # which imports this module

        like = None if self.format == "synthetic" else self.path
        return write_volume(
            path, self.array, like=like, affine=self.affine, dtype=dtype, series=series, overwrite=overwrite
        )


@dataclass(frozen=True, eq=False)
class WritePlan:
    """A file about to be written and what a reader must find in it afterwards.

    Attributes:
        array: float32 values as they will be read back (after rounding and saturation).
        affine: (4, 4) voxel to RAS mm as it will be read back, or None where the format cannot hold it.
        dtype: The type of the stored voxels.
        clipped: Number of voxels that did not fit that type and were saturated.
        save: Writes the file to a path; raises OSError or OutputError.
        load: Reads such a file back without logging warnings.
        bits: How many bits of an integer ``dtype`` are used; None for all.
    """

    array: np.ndarray
    affine: np.ndarray | None
    dtype: np.dtype
    clipped: int
    save: Callable[[Path], None]
    load: Callable[[Path], Volume]
    bits: int | None = None


def require_file(path: Path) -> None:
    """Refuse a path that is not a file, and an empty file.

    Raises:
        UsageError: If there is no file of this name, or what has it is no regular file (a pipe, a folder).
        ScanFileError: If it holds no bytes or may not be read.
    """
    if not path.is_file():
        found = "not a regular file; copy what it holds into one" if path.exists() else "no such file; check the name"
        raise UsageError(f"{path}: {found}.")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ScanFileError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from error
    if size == 0:
        raise ScanFileError(f"{path}: the file is empty (0 bytes); copy it again from its source.")


def to_float32(stored: np.ndarray, path: Path, slope: float = 1.0, inter: float = 0.0) -> np.ndarray:
    """Values of stored voxels: ``stored * slope + inter`` in double precision, then float32.

    Args:
        stored: Integer or real voxels of any shape.
        path: Named in errors.
        slope: Finite and not 0.
        inter: Finite.

    Returns:
        A C-contiguous float32 array of the same shape.

    Raises:
        ScanFileError: If stored voxels are NaN or infinite, or values leave the range of float32.
    """
    check_scale(path, count_not_finite(stored), 0, stored.size, slope, inter)
    values = np.empty(stored.shape, np.float32)
    for start in range(0, stored.shape[-1], _BLOCK):
        values[..., start : start + _BLOCK] = scaled(stored[..., start : start + _BLOCK], slope, inter)
    check_scale(path, 0, count_not_finite(values), values.size, slope, inter)
    check_contrast(path, (float(values.min()), float(values.max())), lambda: (stored.min(), stored.max()))
    return values


def scaled(stored: np.ndarray, slope: float = 1.0, inter: float = 0.0) -> np.ndarray:
    """The arithmetic of `to_float32` on a block of voxels, in their memory order; what overflows becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        exact = stored if slope == 1 and inter == 0 else stored.astype(np.float64) * slope + inter
        return exact.astype(np.float32)


def count_not_finite(voxels: np.ndarray) -> int:
    """How many voxels are NaN or infinite."""
    return voxels.size - int(np.count_nonzero(np.isfinite(voxels))) if voxels.dtype.kind == "f" else 0


def check_scale(path: Path, broken: int, beyond: int, size: int, slope: float, inter: float) -> None:
    """Refuse voxels by what was counted in them, as `to_float32` does.

    Args:
        path: Named in errors.
        broken: Stored voxels that are NaN or infinite.
        beyond: Values that leave the range of float32.
        size: Number of voxels.
        slope: Of the scale.
        inter: Of the scale.

    Raises:
        ScanFileError: If there are any, or the slope is too small for float32.
    """
    if broken:
        raise ScanFileError(
            f"{path}: {broken} of {size} voxels are NaN or infinite; expected finite values "
            "only. Replace them (for example with the background value) and try again."
        )
    if abs(slope) < float(np.finfo(np.float32).tiny):
        raise ScanFileError(f"{path}: the scale slope {slope:g} is too small for float32; correct the header.")
    if beyond:
        raise ScanFileError(
            f"{path}: {beyond} values exceed the range of float32 (3.4e38, slope {slope:g}, "
            f"intercept {inter:g}); rescale the image or correct its header."
        )


def check_contrast(path: Path, values: tuple[float, float], stored: Callable[[], tuple[Any, Any]]) -> None:
    """Refuse a scan that is constant in float32 alone: it would be flattened.

    Args:
        path: Named in errors.
        values: The smallest and the largest value, in float32.
        stored: Gives the smallest and the largest stored voxel; asked only if the values are equal.

    Raises:
        ScanFileError: If the stored voxels differ and the values do not.
    """
    if values[0] != values[1]:
        return
    low, high = stored()
    if low != high:
        raise ScanFileError(
            f"{path}: the voxels differ (from {low!s} to {high!s} as stored), but are all {values[0]:g} in float32, in "
            "which images are denoised; subtract an offset that they share, or scale them up."
        )


def float32_step(lowest: float, highest: float) -> float:
    """How far apart the numbers of float32 are between two values, where they are farthest."""
    peak = np.float32(min(max(abs(lowest), abs(highest)), float(np.finfo(np.float32).max)))
    return float(np.spacing(np.nextafter(peak, np.float32(0))))


def warn_lost_digits(values: np.ndarray, stored_dtype: np.dtype, path: Path, slope: float = 1.0) -> None:
    """Warn when float32 cannot tell neighbouring values of this scan apart.

    Of integers, neighbours are one code apart. Of float64 it cannot be known: the whole range is held to
    ``FEWEST_STEPS`` steps of float32.
    """
    lowest, highest = float(values.min()), float(values.max())
    peak = np.float32(max(abs(lowest), abs(highest)))
    step = float32_step(lowest, highest)
    if stored_dtype.kind in "iu":
        if step > abs(slope):
            logger.warning(
                "%s: %s voxels reach %g, where float32 resolves steps of %g but the file holds steps of %g; "
                "the last digits are lost.",
                path,
                stored_dtype.name,
                peak,
                np.spacing(peak),
                abs(slope),
            )
    elif stored_dtype.itemsize > 4 and lowest < highest < lowest + FEWEST_STEPS * step:
        logger.warning(
            "%s: values lie between %s and %s, where float32 resolves steps of %g; finer contrasts are lost. Subtract "
            "an offset that the values share.",
            path,
            lowest,
            highest,
            step,
        )


def quantise(
    values: np.ndarray, dtype: np.dtype, slope: float = 1.0, inter: float = 0.0, bits: int | None = None
) -> tuple[np.ndarray, int]:
    """Stored voxels of values: ``rint((values - inter) / slope)``, saturated to ``dtype``, never wrapped.

    Args:
        values: Finite values, any shape.
        dtype: Type of the stored voxels; real types are not rounded.
        slope: Finite and not 0.
        inter: Finite.
        bits: How many bits of an integer ``dtype`` may be used, the sign among them; None for all.

    Returns:
        The stored voxels (Fortran order, as files hold them) and the number of saturated ones.

    Raises:
        OutputError: If values are not finite, or too large for a real ``dtype``.
    """
    broken = values.size - int(np.count_nonzero(np.isfinite(values)))
    if broken:
        raise OutputError(f"{broken} of {values.size} values to write are NaN or infinite; nothing was written.")
    stored = np.empty(values.shape, dtype, order="F")
    clipped = 0
    with np.errstate(over="ignore"):
        for start in range(0, values.shape[-1], _BLOCK):
            block = (values[..., start : start + _BLOCK].astype(np.float64) - inter) / slope
            if dtype.kind in "iu":
                low, high = _integer_bounds(dtype, bits)
                np.rint(block, out=block)
                clipped += int(np.count_nonzero((block < low) | (block > high)))
                np.clip(block, low, high, out=block)
            stored[..., start : start + _BLOCK] = block
    if dtype.kind == "f" and not np.isfinite(stored).all():
        raise OutputError(f"values up to {np.abs(values).max():g} do not fit {dtype.name}; write a wider type.")
    return stored, clipped


def plan_values(
    write: Callable[[Path], None],
    kind: str,
    stored: np.ndarray,
    clipped: int,
    affine: np.ndarray | None,
    load: Callable[[Path], Volume],
) -> WritePlan:
    """A `WritePlan` of stored voxels without a scale; ``write`` may raise whatever its library does."""

    def save(path: Path) -> None:
        try:
            write(path)
        except (RuntimeError, OSError) as error:
            raise OutputError(f"{path}: {kind} could not be written (disk full, or not permitted).") from error

    return WritePlan(to_float32(stored, Path("the output")), affine, stored.dtype, clipped, save, load)


def bare_spacing(affine: np.ndarray, path: Path) -> tuple[float, float, float]:
    """The voxel size in mm of an affine to be written to a format that keeps no more, with a warning if there is more.

    Raises:
        OutputError: If the affine is unusable.
    """
    if fault := affine_fault(affine):
        raise OutputError(f"the affine to write is {fault}; expected a finite, invertible voxel-to-mm matrix.")
    spacing = spacing_from_affine(affine)
    if not same_affine(affine, lps_to_ras(np.diag([*spacing, 1.0]))):
        logger.warning("%s: %s files keep no position or orientation; write .nii.gz to keep them.", path, path.suffix)
    return spacing


def plain_dtype(volume: Volume) -> np.dtype:
    """The type that holds this volume's *values* (no slope) in another format.

    Integers stay integers where all values are whole: the stored type if it holds them, else int16, uint16 or int32.
    Anything else becomes a real type: the stored one, or float32 (for half precision too, which few formats have).
    """
    native = volume.dtype.newbyteorder("=")
    if native.kind == "f":
        return native if native.itemsize > 2 else np.dtype(np.float32)
    low, high = float(volume.array.min()), float(volume.array.max())
    if np.array_equal(volume.array, np.rint(volume.array)):
        for dtype in (native, np.dtype(np.int16), np.dtype(np.uint16), np.dtype(np.int32)):
            smallest, largest = _integer_bounds(dtype)
            if smallest <= low and high <= largest:
                return dtype
    return np.dtype(np.float32)


def report_clipped(clipped: int, dtype: np.dtype, path: Path, bits: int | None = None) -> None:
    """Log how many voxels were saturated, if any were; ``bits`` as in `quantise`."""
    if clipped:
        within = "" if bits in (None, dtype.itemsize * 8) else f"the {bits} stored bits of "
        logger.warning("%s: %d voxels do not fit %s%s and were saturated.", path, clipped, within, dtype.name)


def _integer_bounds(dtype: np.dtype, bits: int | None = None) -> tuple[float, float]:
    """Smallest and largest float64 that convert to ``dtype``, or to its lowest bits, without wrapping."""
    limits = np.iinfo(dtype)
    if bits is not None and bits < limits.bits:
        return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if dtype.kind == "i" else (0.0, 2.0**bits - 1)
    high = float(limits.max)
    return float(limits.min), high if int(high) <= limits.max else float(np.nextafter(high, 0))
