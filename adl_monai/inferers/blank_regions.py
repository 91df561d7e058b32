"""Regions of one value: with one in sight, a network leaves noise that neighbours share as it is.

Skull-stripped background, the padding of a CT, nothing around a PET scan, the rim that an MRI scanner blanks. The
network is shown the image instead, mirrored at the region's edge, unless the image is too thin for that, as vessels
alone are. The region gets back what it was, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adl_monai.data.raw_voxels import Box
from adl_monai.inferers.sweep import Read

SOLID = 100
"""Pixels of a square that fits into a region, at least: so many side by side are not equal by chance."""

QUIET = 0.008
"""Of the intensity range, above the smallest value, around a region of it: the rim that a scanner blanks rings so."""

SHARE = 0.01
"""Of a plane, below which a region stays as it is."""

COUNTS = 0.001
"""Of the other pixels: where as many stand amid the signal and have a region's value too, it is a count of nothing, and
the region stays. Low counts go astray without the nothing around them: a mean of 3 became 0.6."""

SPECK = 9
"""Pixels, up to which what stands alone in a region comes back with it as it was."""

REACH = 16
"""Pixels from its edge, along which the image can be mirrored if it is as deep as that."""

THIN = 1 / 3
"""Of a region's pixels so close, above which the image is not: vessels alone. Filled, they would stand in streaks of
their outermost pixels and pass for noise, so the region is shown as it is. In heads it is a tenth or less, but for the
last slices; in a CT angiogram without its head more than this."""


class BlankRegions:
    """A volume whose blank regions are filled for the network, and put back afterwards.

    They are found and filled in each plane along the last axis by itself, so that a volume read box by box gives what
    one in memory does. A plane that is blank all over shows the others, mirrored at the nearest.

    Args:
        read: Gives the noisy voxels of a box, (1, C, h, w, d); from any thread.
        shape: Of the volume.
    """

    def __init__(self, read: Read, shape: Sequence[int]) -> None:
        self._read = read
        self._rows, self._columns, self._count = shape
        self._usual: set[int] = set()  # planes without a region
        self._blank: dict[int, bool] = {}  # whether nothing but a region is on a plane

    @property
    def none_found(self) -> bool:
        """Whether there were none in what was read until now."""
        return len(self._usual) == len(self._blank)

    def filled(self, box: Box) -> Tensor:
        """What the network is to see of a box: what is there, or a new tensor."""
        rows, columns, planes = box
        noisy = seen = self._planes(planes)
        for index in range(planes.start, planes.stop):
            if index not in self._usual:
                filling = self._filling(index, noisy[0, ..., index - planes.start])
                if filling is not None:
                    seen = noisy.clone() if seen is noisy else seen
                    seen[0, ..., index - planes.start] = filling
        return seen[:, :, rows, columns]

    def put_back(self, box: Box, denoised: Tensor) -> Tensor:
        """The denoised voxels of a box, those of blank regions replaced in place by what they were."""
        rows, columns, planes = box
        for index in range(planes.start, planes.stop):
            if index not in self._usual:
                plane = self._plane(index)
                region, _ = blank_region(plane)
                part = denoised[0, ..., index - planes.start]
                inner, values = region[rows, columns].to(part.device), plane[:, rows, columns].to(part.device)
                part.copy_(torch.where(inner, values, part))
        return denoised

    def _planes(self, planes: slice) -> Tensor:
        return self._read((slice(0, self._rows), slice(0, self._columns), planes))

    def _plane(self, index: int) -> Tensor:
        return self._planes(slice(index, index + 1))[0, ..., 0]

    def _filling(self, index: int, plane: Tensor) -> Tensor | None:
        """What the network is to see of a plane, (C, H, W); None for the plane as it is."""
        region, source = self._look(index, plane)
        if not self._blank[index]:
            return mirrored_into(plane, region, source) if region.any() and not is_thin(region, source) else None
        shown = self._mirror_image(index)
        if shown is None:
            return None
        plane = self._plane(shown)
        filling = self._filling(shown, plane)
        return plane if filling is None else filling

    def _mirror_image(self, index: int) -> int | None:
        """The plane that a blank one shows, or None if all are blank."""
        for distance in range(1, self._count):
            for step in (-distance, distance):
                if self._shows_something(index + step):
                    return index + (2 * step if self._shows_something(index + 2 * step) else step)
        return None

    def _shows_something(self, index: int) -> bool:
        if not 0 <= index < self._count:
            return False
        if index not in self._blank:
            self._look(index, self._plane(index))
        return not self._blank[index]

    def _look(self, index: int, plane: Tensor) -> tuple[Tensor, Tensor]:
        region, source = blank_region(plane)
        self._blank[index] = bool(region.all())
        if not region.any():
            self._usual.add(index)
        return region, source


def blank_region(plane: Tensor) -> tuple[Tensor, Tensor]:
    """Where a plane, (C, H, W), is blank in all its channels, and where it is the image proper: two masks, (H, W).

    Neither is what has a region's value but is no part of it: too narrow, or equal by chance.
    """
    region = equal = torch.ones_like(plane[0], dtype=torch.bool)
    for channel in plane:
        solid, same = _blank_in(channel)
        region, equal = region & solid, equal & same
    if bool(region.any()):
        region = region | _specks(~region)
    return region, ~(equal | region)


def _blank_in(image: Tensor) -> tuple[Tensor, Tensor]:
    """The blank regions of one channel, and all that has their value: its smallest, or the commonest of its border."""
    region = equal = torch.zeros_like(image, dtype=torch.bool)
    if image.numel() < SOLID:
        return region, equal
    border = torch.cat([image[0], image[-1], image[:, 0], image[:, -1]])
    lowest = float(image.min())
    for value in {lowest, float(border.mode().values)}:
        same = image == value
        if int(same.sum()) >= SHARE * same.numel():
            solid = _solid(same)
            if int(solid.sum()) >= SHARE * same.numel() and not _is_count(image, same, value):
                if value == lowest:
                    same = image <= value + QUIET
                    solid = _holding(_solid(same), solid)
                region, equal = region | solid, equal | same
    return region, equal


def _is_count(image: Tensor, same: Tensor, value: float) -> bool:
    """Whether a value also stands by itself amid the signal, as zeros do among low counts."""
    inner = slice(1, -1)
    beside = torch.stack([image[:-2, inner], image[2:, inner], image[inner, :-2], image[inner, 2:]])
    others = image[~same]
    if not others.numel():
        return False
    amid = ((beside - value).abs() > (others.median() - value).abs() / 2).all(0)
    return int((same[inner, inner] & amid).sum()) > COUNTS * others.numel()


def _solid(mask: Tensor) -> Tensor:
    """The connected parts of a mask of which a quarter or more is made of such squares, also across the border."""
    from scipy.ndimage import label, maximum_filter, minimum_filter

    axes = sum(size > 2 for size in mask.shape)
    edge = 2 * math.ceil(SOLID ** (1 / max(axes, 1)) / 2) + 1
    array = mask.cpu().numpy()
    parts, count = label(array)
    squares = maximum_filter(minimum_filter(array, edge, mode="constant", cval=1), edge)
    within = np.bincount(parts[squares], minlength=count + 1)
    solid = within > np.bincount(parts.ravel(), minlength=count + 1) / 4
    solid[0] = False
    return torch.from_numpy(solid[parts]).to(mask.device)


def _holding(mask: Tensor, core: Tensor) -> Tensor:
    """The connected parts of a mask that hold some of its core, and the core."""
    from scipy.ndimage import label

    parts, _ = label(mask.cpu().numpy())
    held = np.unique(parts[core.cpu().numpy()])
    return torch.from_numpy(np.isin(parts, held[held > 0])).to(mask.device) | core


def _specks(mask: Tensor) -> Tensor:
    """The connected parts of a mask that are too small to be shown among what fills a region around them."""
    from scipy.ndimage import label

    parts, _ = label(mask.cpu().numpy())
    return torch.from_numpy(np.bincount(parts.ravel())[parts] <= SPECK).to(mask.device) & mask


def is_thin(region: Tensor, source: Tensor) -> bool:
    """Whether the image proper is, for the most part, not deep enough to be mirrored into a region: masks, (H, W)."""
    close = lacking = 0
    for axis in (0, 1):
        filling = _mirrored_along(axis, region, source)
        near = filling.filled & (filling.distance <= REACH)
        close, lacking = close + int(near.sum()), lacking + int((near & filling.repeated).sum())
        region = region & ~filling.filled
    return lacking > THIN * close


def mirrored_into(plane: Tensor, region: Tensor, source: Tensor) -> Tensor:
    """A plane, (C, H, W), whose region shows what lies before its edge: along the first axis, else the second.

    Where the image is not deep enough for that, its outermost pixel goes on.
    """
    source = source if bool(source.any()) else ~region
    for axis in (0, 1):
        if bool(region.any()):
            filling = _mirrored_along(axis, region, source)
            plane = torch.where(filling.filled, plane.gather(1 + axis, filling.shown.expand_as(plane)), plane)
            region, source = region & ~filling.filled, source | filling.filled
    return plane


class _Filling(NamedTuple):
    """What is filled along an axis, (H, W): whether, with which place, how far the image is, if it is too thin."""

    filled: Tensor
    shown: Tensor
    distance: Tensor
    repeated: Tensor


def _mirrored_along(axis: int, region: Tensor, source: Tensor) -> _Filling:
    size = region.shape[axis]
    place = torch.arange(size, device=region.device)
    place = (place[:, None] if axis == 0 else place[None]).expand(region.shape)
    before = torch.where(source, place, -2 * size).cummax(axis).values
    after = torch.where(source, place, 3 * size).flip(axis).cummin(axis).values.flip(axis)
    nearest = torch.where(place - before <= after - place, before, after)
    filled = region & (nearest >= 0) & (nearest < size)
    nearest = nearest.clamp(0, size - 1)
    image = 2 * nearest - place
    inside = (image >= 0) & (image < size)
    image = image.clamp(0, size - 1)
    repeated = ~(inside & source.gather(axis, image))
    return _Filling(filled, torch.where(repeated, nearest, image), (place - nearest).abs(), repeated)
