"""The voxel arithmetic that every reader and writer shares.

Stored voxels become values by ``value = stored * slope + inter`` and values become stored voxels by the inverse,
rounded and saturated. Both directions live here once, so a writer can say beforehand what a reader must find.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adl_monai.errors import OutputError, ScanFileError

logger = logging.getLogger("adl_monai")

FEWEST_STEPS = 4096
"""Of float32 within the range of an image, below which contrasts are visibly rounded: 12 bits, as scanners store.

A file with fewer is warned of; an array is refused, as its caller can subtract an offset at once.
"""

_BLOCK = 16  # slices converted at a time, so that no float64 copy of a whole scan exists


def to_float32(
    stored: np.ndarray, path: Path, slope: float = 1.0, inter: float = 0.0, missing: np.ndarray | None = None
) -> np.ndarray:
    """Values of stored voxels: ``stored * slope + inter`` in double precision, then float32.

    Args:
        stored: Integer or real voxels of any shape.
        path: Named in errors.
        slope: Finite and not 0.
        inter: Finite.
        missing: Where stored voxels may be NaN or infinite, and stay so; None for nowhere.

    Returns:
        A C-contiguous float32 array of the same shape.

    Raises:
        ScanFileError: If stored voxels are NaN or infinite, or values leave the range of float32.
    """
    expected = 0 if missing is None else int(np.count_nonzero(missing))
    check_scale(path, count_not_finite(stored) - expected, 0, stored.size, slope, inter)
    values = np.empty(stored.shape, np.float32)
    for start in range(0, stored.shape[-1], _BLOCK):
        values[..., start : start + _BLOCK] = scaled(stored[..., start : start + _BLOCK], slope, inter)
    check_scale(path, 0, count_not_finite(values) - expected, values.size, slope, inter)
    proper, proper_stored = (values, stored) if missing is None else (values[~missing], stored[~missing])
    if proper.size:
        extremes = float(proper.min()), float(proper.max())
        check_contrast(path, extremes, lambda: (proper_stored.min(), proper_stored.max()))
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
            f"{path}: {broken} of {size} voxels are NaN or infinite; expected finite values only. Replace them (for "
            "example with the background value), or keep them, in NIfTI volumes that fit the memory: --nan-policy keep."
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


def keeps_type(dtype: str | np.dtype) -> bool:
    """Whether a type to write is ``same``: the source's own."""
    return isinstance(dtype, str) and dtype == "same"


def quantise(
    values: np.ndarray,
    dtype: np.dtype,
    slope: float = 1.0,
    inter: float = 0.0,
    bits: int | None = None,
    missing: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
    """Stored voxels of values: ``rint((values - inter) / slope)``, saturated to ``dtype``, never wrapped.

    Args:
        values: Finite values, any shape; where ``missing`` says so, not finite.
        dtype: Type of the stored voxels; real types are not rounded.
        slope: Finite and not 0.
        inter: Finite.
        bits: How many bits of an integer ``dtype`` may be used, the sign among them; None for all.
        missing: Where values are NaN or infinite, for a real ``dtype``; None for nowhere.

    Returns:
        The stored voxels (Fortran order, as files hold them) and the number of saturated ones.

    Raises:
        OutputError: If values are not finite, or too large for a real ``dtype``.
    """
    expected = 0 if missing is None or dtype.kind != "f" else int(np.count_nonzero(missing))
    broken = values.size - int(np.count_nonzero(np.isfinite(values))) - expected
    if broken:
        raise OutputError(f"{broken} of {values.size} values to write are NaN or infinite; nothing was written.")
    stored = np.empty(values.shape, dtype, order="F")
    clipped = 0
    with np.errstate(over="ignore"):
        for start in range(0, values.shape[-1], _BLOCK):
            block = (values[..., start : start + _BLOCK].astype(np.float64) - inter) / slope
            if dtype.kind in "iu":
                low, high = integer_bounds(dtype, bits)
                np.rint(block, out=block)
                clipped += int(np.count_nonzero((block < low) | (block > high)))
                np.clip(block, low, high, out=block)
            stored[..., start : start + _BLOCK] = block
    if dtype.kind == "f" and count_not_finite(stored) > expected:
        largest = np.abs(values[np.isfinite(values)]).max()
        raise OutputError(f"values up to {largest:g} do not fit {dtype.name}; write a wider type.")
    return stored, clipped


def report_clipped(clipped: int, dtype: np.dtype, path: Path, bits: int | None = None) -> None:
    """Log how many voxels were saturated, if any were; ``bits`` as in `quantise`."""
    if clipped:
        within = "" if bits in (None, dtype.itemsize * 8) else f"the {bits} stored bits of "
        logger.warning("%s: %d voxels do not fit %s%s and were saturated.", path, clipped, within, dtype.name)


def integer_bounds(dtype: np.dtype, bits: int | None = None) -> tuple[float, float]:
    """Smallest and largest float64 that convert to ``dtype``, or to its lowest bits, without wrapping."""
    limits = np.iinfo(dtype)
    if bits is not None and bits < limits.bits:
        return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if dtype.kind == "i" else (0.0, 2.0**bits - 1)
    high = float(limits.max)
    return float(limits.min), high if int(high) <= limits.max else float(np.nextafter(high, 0))
