"""Train on the intensities that inference will see: normalised by the noisy image's range, not the clean one's.

A scan comes with its noise, which widens the range between its percentiles: black becomes a dark grey, white a light
one. A network that met only black at 0 and white at 1 loses 0.3 to 2 dB on such intensities.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor

from adl_monai.data.degradations import Degradation
from adl_monai.data.normalization import normalize, robust_range

SAMPLE = "intensities"
VOXELS = 8192
OTHER_SEED = 0x9E3779B9  # the sample's noise is not the patch's


class SampledIntensitiesd(MapTransform):
    """Keep some voxels of the whole image, evenly spread, as ``"intensities"`` (n,), for ``NoisyRanged``.

    Args:
        keys: the one image, (C, H, W[, D]), before it is cropped.
        allow_missing_keys: skip cases that do not have the image.
    """

    def __init__(self, keys: KeysCollection = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case with its sample."""
        case = dict(data)
        for key in self.key_iterator(case):
            values = convert_to_tensor(case[key], track_meta=False).flatten()
            # Evenly spread, but on no row or column of its own: a step of the golden ratio.
            count = min(VOXELS, values.numel())
            positions = torch.arange(count, dtype=torch.float64) * 0.6180339887498949 % 1 * values.numel()
            case[SAMPLE] = values[positions.long()].clone()
        return case


class NoisyRanged(MapTransform):
    """Renormalise a degraded patch and its clean label by the range that the whole image has with such noise.

    The range is that of the sample of ``SampledIntensitiesd`` under the recorded degradation. Both records are taken
    out of the case. A case that was not degraded is a real pair, normalised by its noisy image already, and passes.

    Args:
        keys: the noisy and the clean patch.
        lower: percentile mapped to 0.
        upper: percentile mapped to 1.
        allow_missing_keys: skip keys that a case does not have.
    """

    def __init__(
        self, keys: KeysCollection, lower: float = 0.5, upper: float = 99.5, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.lower = lower
        self.upper = upper

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case on the noisy scale."""
        case = dict(data)
        sample, record = case.pop(SAMPLE), case.pop("degradation")
        if record["kind"] == "none":
            return case
        degradation = Degradation(record["kind"], record["sigma"], record["seed"] ^ OTHER_SEED)
        offset, scale = robust_range(degradation.apply(sample), self.lower, self.upper)
        if scale > 0:
            for key in self.key_iterator(case):
                case[key] = normalize(
                    convert_to_tensor(case[key], track_meta=isinstance(case[key], MetaTensor)), offset, scale
                )
        return case
