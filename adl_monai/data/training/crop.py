"""The random patch of a case: where it lies and how it is turned, drawn and cut at once.

On plain tensors: a chain of MONAI's transforms records the geometry in each step, which nothing reads after the crop,
and on small patches that cost more than the noise.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_tensor


class RandPatchd(Randomizable, MapTransform):
    """Cut the same random patch out of all images of a case, mirrored and turned at random.

    Every place is equally likely. Each axis is mirrored in half of the patches, and half of them are turned by 90, 180
    or 270 degrees in the plane of the first two axes (by 180 where the patch is no square there). The patches are new
    plain tensors: the images, which may be cached or mapped from a disk, are read in the patch alone and never written
    to.

    Args:
        keys: images of one shape, (C, H, W, D) or (C, H, W).
        roi_size: size of the patch, one number an axis; an axis that is shorter is taken whole.
        squeeze: drop a last axis of one voxel, (C, h, w, 1) → (C, h, w): slices of volumes for a 2D network.
        allow_missing_keys: skip keys that a case does not have.

    Raises:
        ValueError: For a size that is no list of positive numbers, or, when called, images of several shapes or with
            another number of axes.
    """

    def __init__(
        self,
        keys: KeysCollection,
        roi_size: Sequence[int],
        squeeze: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.roi_size = tuple(int(size) for size in roi_size)
        if not self.roi_size or min(self.roi_size) < 1:
            raise ValueError(f"roi_size {tuple(roi_size)} given; expected a positive number for each axis.")
        self.squeeze = squeeze
        self.window: tuple[slice, ...] = ()
        self.mirrored: list[int] = []
        self.quarter_turns = 0

    def randomize(self, data: Sequence[int]) -> None:
        """Draw the patch of an image of spatial shape ``data``."""
        size = np.minimum(data, self.roi_size)
        start = self.R.randint(0, np.asarray(data) - size + 1)
        self.window = tuple(slice(int(a), int(a + n)) for a, n in zip(start, size, strict=True))
        self.mirrored = [axis + 1 for axis in np.flatnonzero(self.R.random_sample(len(size)) < 0.5).tolist()]
        turned, quarter_turns = self.R.random_sample() < 0.5, int(self.R.randint(1, 4))
        square = len(size) > 1 and size[0] == size[1]
        self.quarter_turns = (quarter_turns if square else 2) if turned and len(size) > 1 else 0

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case with patches instead of its images."""
        case = dict(data)
        images = {key: convert_to_tensor(case[key], track_meta=False) for key in self.key_iterator(case)}
        shapes = {tuple(image.shape[1:]) for image in images.values()}
        if len(shapes) > 1 or any(len(shape) != len(self.roi_size) for shape in shapes):
            raise ValueError(
                f"images of spatial shapes {sorted(shapes)} given; expected one shape of {len(self.roi_size)} axes, as "
                f"in roi_size {self.roi_size}."
            )
        for shape in shapes:
            self.randomize(shape)
        for key, image in images.items():
            patch = torch.rot90(image[(slice(None), *self.window)].flip(self.mirrored), self.quarter_turns, (1, 2))
            case[key] = patch.squeeze(-1) if self.squeeze else patch
        return case
