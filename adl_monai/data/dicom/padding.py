"""Which pixels are padding: all that hold the padding value where no real pixel comes near it, else solid regions.

A scanner that pads with 0, or with the lowest value of air, uses a value that noise reaches too. Padding proper then is
what fills a part of the plane; single pixels of that value among others are noise.
"""

from __future__ import annotations

import functools

import numpy as np

_SOLID = 5
"""Side of the smallest block, in pixels, that noise does not fill: half of all pixels being 0, one block in 2^25 is."""

_NEAR = 100  # real pixels come near the value if they come nearer than their range divided by this


def padded_pixels(stored: np.ndarray, low: int, high: int) -> np.ndarray | None:
    """Where stored values, indexed (row, column), from ``low`` to ``high`` are padding; None if nowhere."""
    padded = (stored >= low) & (stored <= high)
    if not padded.any() or padded.all():
        return padded if padded.any() else None
    others = stored[~padded]
    near = max(1, (int(others.max()) - int(others.min())) // _NEAR)
    if ((others >= low - near) & (others <= high + near)).any():
        padded &= _near_blocks(padded)
    return padded if padded.any() else None


def _near_blocks(mask: np.ndarray) -> np.ndarray:
    """Pixels in solid blocks, or so near to one that a region's tips are in; what is outside the plane is solid."""
    reach = _SOLID // 2
    blocks = _windows(np.pad(mask, 2 * reach, constant_values=True), _SOLID, np.logical_and)  # by their centres
    return _windows(np.pad(blocks, reach), 4 * reach + 1, np.logical_or)


def _windows(mask: np.ndarray, width: int, combine: np.ufunc) -> np.ndarray:
    """All or any of each square window that fits."""
    for axis in (0, 1):
        count = mask.shape[axis] - width + 1
        parts = [mask[start : start + count] if axis == 0 else mask[:, start : start + count] for start in range(width)]
        mask = functools.reduce(combine, parts)
    return mask
