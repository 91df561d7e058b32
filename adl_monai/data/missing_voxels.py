"""Voxels without a number, such as the NaN that tools write outside a mask: the model must not see them.

They are refused, or on request kept: filled for the model with what lies beside them, and written back as they were.
"""

from __future__ import annotations

import numpy as np

from adl_monai.errors import UsageError

NAN_POLICIES = ("refuse", "keep")


def keeps_missing(nan_policy: str) -> bool:
    """Whether a policy keeps voxels that are NaN or infinite.

    Raises:
        UsageError: If there is no such policy.
    """
    if nan_policy not in NAN_POLICIES:
        raise UsageError(f"nan_policy {nan_policy!r} is unknown; expected one of {', '.join(NAN_POLICIES)}.")
    return nan_policy == "keep"


def filled_from_beside(array: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """A copy whose missing voxels hold the mirror image of the others at the nearest of them, else that one's value.

    A constant would do for neither of the two that there are: single voxels become spots, and with a wide region of one
    value in sight a network leaves noise that neighbours share as it is.

    Args:
        array: Values, any number of axes.
        missing: Of the same shape; some are not.
    """
    from scipy.ndimage import distance_transform_edt

    at = np.nonzero(missing)
    nearest = distance_transform_edt(missing, return_distances=False, return_indices=True)[(slice(None), *at)]
    image = 2 * nearest - np.stack(at)
    edges = np.array(array.shape)[:, None] - 1
    inside = ((image >= 0) & (image <= edges)).all(0)
    image = image.clip(0, edges)
    source = np.where(inside & ~missing[tuple(image)], image, nearest)
    filled = array.copy()
    filled[at] = array[tuple(source)]
    return filled
