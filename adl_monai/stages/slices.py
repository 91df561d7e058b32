"""Which of the shipped models fits an image: volumes of thick slices are denoised slice by slice."""

from __future__ import annotations

from collections.abc import Sequence

THICK = 5.0
"""From how many pixels on neighbouring slices say less than the 3D model expects (``benchmarks/thick_slices.py``): from
four pixels as the scanner resolves them, from five or six where it has interpolated them, which no header tells."""


def fitting_axes(shape: Sequence[int], spacing: Sequence[float] | None = None) -> int:
    """How many axes the shipped model should see at once.

    Args:
        shape: Of the image, (columns, rows[, slices]), without channels.
        spacing: Voxel size in any unit, one number for each axis; None if unknown: taken as equal.

    Returns:
        3 for a volume. 2 for an image, a single slice, or slices along the last axis that are at least ``THICK`` times
        as far apart as the pixels in them.
    """
    if len(shape) < 3 or shape[2] == 1:
        return 2
    if spacing is None:
        return 3
    return 2 if spacing[2] >= THICK * max(spacing[:2]) else 3
