"""Train on the intensities that inference will see: normalised by the noisy image's range, not the clean one's.

A scan comes with its noise, which widens the range between its percentiles: black becomes a dark grey, white a light
one. A network that met only black at 0 and white at 1 lost 0.3 to 2.4 dB on such intensities.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_tensor

from adl_monai.data.degradations import Degradation
from adl_monai.data.normalization import normalize, robust_range

SAMPLE = "intensities"
VOXELS = 8192
LARGEST_SHIFT = 0.4
OTHER_SEED = 0x9E3779B9  # the sample's noise is not the patch's


class SampledIntensitiesd(MapTransform):
    """Keep some voxels of the whole image, evenly spread, as ``"intensities"`` (n,), for ``RandNoisyRanged``.

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


class RandNoisyRanged(RandomizableTransform, MapTransform):
    """Renormalise a degraded patch and its clean label by the range that the whole image has with such noise.

    The range is that of the sample of ``SampledIntensitiesd`` under the recorded degradation. Both records are taken
    out of the case. A case that was not degraded is a real pair, normalised by its noisy image already, and keeps its
    range.

    A share of the patches is shifted and stretched besides: percentiles depend on how much background a scan shows,
    and a network that trusts them fails, by many dB, where they are not what it has met.

    Args:
        keys: the noisy and the clean patch.
        lower: percentile mapped to 0.
        upper: percentile mapped to 1.
        jitter: share of the patches that are moved: by up to 0.4 either way, and stretched by up to the root of 2.
        allow_missing_keys: skip keys that a case does not have.
        fixed: keep the range: images have a fixed one, which noise does not change.
    """

    def __init__(
        self,
        keys: KeysCollection,
        lower: float = 0.5,
        upper: float = 99.5,
        jitter: float = 0.0,
        allow_missing_keys: bool = False,
        fixed: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, jitter)
        self.lower = lower
        self.upper = upper
        self.fixed = fixed
        self.move = (0.0, 1.0)

    def randomize(self, data: Any = None) -> None:
        """Draw whether to move the patch, how far, and how much to stretch it."""
        super().randomize(data)
        shift, stretch = float(self.R.uniform(-LARGEST_SHIFT, LARGEST_SHIFT)), float(2 ** self.R.uniform(-0.5, 0.5))
        self.move = (shift, stretch) if self._do_transform else (0.0, 1.0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case on the noisy scale."""
        self.randomize()
        case = dict(data)
        sample, record = case.pop(SAMPLE), case.pop("degradation")
        offset, scale = 0.0, 1.0
        if record["kind"] != "none" and not self.fixed:
            degradation = Degradation(record["kind"], record["sigma"], record["seed"] ^ OTHER_SEED)
            offset, scale = robust_range(degradation.apply(sample), self.lower, self.upper)
        shift, stretch = self.move
        scale = scale / stretch if scale > 0 else 1 / stretch
        offset -= shift * scale
        if (offset, scale) != (0.0, 1.0):
            for key in self.key_iterator(case):
                image = convert_to_tensor(case[key], track_meta=isinstance(case[key], MetaTensor))
                case[key] = normalize(image, offset, scale)
        return case
