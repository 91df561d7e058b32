"""Which pixels are padding: all that hold the padding value where no real pixel comes near it, else solid regions.

A scanner that pads with 0, or with the lowest value of air, uses a value that noise reaches too. Padding proper then is
what fills a part of the plane; single pixels of that value among others are noise.
"""

from __future__ import annotations

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
    from scipy.ndimage import maximum_filter, minimum_filter

    reach = 2 * (_SOLID // 2)
    padded = np.pad(mask, reach, constant_values=True)
    blocks = minimum_filter(padded, _SOLID, mode="constant", cval=0)  # by their centres
    near: np.ndarray = maximum_filter(blocks, 2 * reach + 1, mode="constant", cval=0)
    return near[reach:-reach, reach:-reach]
