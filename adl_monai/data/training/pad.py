"""Patches of volumes thinner than a patch, brought to its size after their noise was added.

The order matters: of a padded slice, each mirrored copy would get noise of its own, and a network would learn to
average the copies, which a scan does not have. With 2 slices, that cost more than 7 dB on real ones.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor


class PadPatchd(MapTransform):
    """Mirror the short axes of patches, noise and all, until they have their size.

    What MONAI's ``SpatialPadd(mode="symmetric")`` does, on plain tensors and only where an axis is short: for full
    patches, MONAI's records of the geometry cost nearly as much as all that is drawn.

    Args:
        keys: patches, (C, h, w[, d]).
        roi_size: size of a full patch; what is beyond a patch's own axes, as of a squeezed one, does not count.
        allow_missing_keys: skip keys that a case does not have.
    """

    def __init__(self, keys: KeysCollection, roi_size: Sequence[int], allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.roi_size = tuple(int(size) for size in roi_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case with patches of full size."""
        case = dict(data)
        for key in self.key_iterator(case):
            patch = convert_to_tensor(case[key], track_meta=False)
            missing = [max(0, full - size) for full, size in zip(self.roi_size, patch.shape[1:], strict=False)]
            if any(missing):
                widths = [(0, 0), *((count // 2, count - count // 2) for count in missing)]
                patch = torch.from_numpy(np.pad(patch.numpy(), widths, mode="symmetric"))
            case[key] = patch
        return case
