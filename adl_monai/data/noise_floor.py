"""What becomes of a noise floor: noise whose mean is not zero, as where values may not be negative.

In magnitude MRI the noise lifts what is dark (Rician noise), and the networks have learned to undo that. Noise clipped
at zero, or at -1024 HU, looks alike to them, and so do few counts, whose means are the signal: there, what the network
took from the means is given back.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from adl_monai.errors import UsageError

logger = logging.getLogger(__name__)

CHOICES = ("auto", "remove", "keep")
WIDTHS = {2: 8.0, 3: 3.0}
"""Standard deviation in voxels of the Gaussian window that says what is local, in slices and in volumes: the mean over
both has about a thousandth of the variance of white noise (1/804 and 1/1203)."""

NOTICEABLE = 0.05
"""Share of an image's mean, above its darkest, that may go without a word."""

_ROUNDS = 2  # the second knows levels apart that the network has merged
_CAUTION = 2.0  # times the variance of what was removed: differences in level below it are no guide
_ROUNDING = 1e-6  # of float32, in differences of squares
_BLANK = 7  # voxels along each axis that are equal: no noise
_UNTOUCHED = 3  # pixels along both axes of a slice that nothing was taken from: not by chance


def keeps_means(noise_floor: str, modality: str = "") -> bool:
    """Whether means are kept: if ``keep``, or if ``auto`` and the file names a modality (DICOM) other than MR.

    Raises:
        UsageError: If there is no such choice.
    """
    if noise_floor not in CHOICES:
        raise UsageError(
            f"noise floor {noise_floor!r} is unknown; expected {', '.join(CHOICES[:-1])} or {CHOICES[-1]}."
        )
    return noise_floor == "keep" or (noise_floor == "auto" and modality not in ("", "MR"))


def keep_means(noisy: Tensor, denoised: Tensor, spatial_dims: int) -> Tensor:
    """``denoised`` with the local means, and the sum, of ``noisy``, within the range of ``noisy``.

    What was removed is smoothed and added. So that it stays on its side of an edge, it is smoothed as a guided filter
    does (He, Sun, Tang 2013): in each window a line is fitted, what was removed over the denoised level, and the lines
    of overlapping windows are mixed. Regions that are exactly constant (the background of counts, the outside of a
    scanner's circle) or that the inferer left as they were (blank ones) come out as they went in.

    Args:
        noisy: (C, H, W[, D]).
        denoised: The same shape.
        spatial_dims: What the network sees at once: 2 takes the slices of a volume one by one.
    """
    axes = range(1, 1 + spatial_dims)
    lowest, highest = noisy.min(), noisy.max()
    inside = ~(_constant_regions(noisy, axes) | _opened(noisy == denoised, dict.fromkeys((1, 2), _UNTOUCHED)))
    windows = _Windows(inside, axes, WIDTHS[spatial_dims])
    result = denoised.clamp(lowest, highest)
    for _ in range(_ROUNDS):
        result.mul_(inside)
        slopes, constants = _lines(result, (noisy - result).mul_(inside), windows)
        result += windows.mix(slopes).mul_(result)
        result += windows.mix(constants)
    return torch.where(inside, result.clamp_(lowest, highest), noisy)


def _lines(level: Tensor, removed: Tensor, windows: _Windows) -> tuple[Tensor, Tensor]:
    """Slope and constant of ``removed`` over ``level`` in each window; flat where levels hardly differ."""
    mean_level, mean_removed = windows.means(level), windows.means(removed)
    level_square, removed_square = windows.means(level.square()), windows.means(removed.square())
    spread = (level_square - mean_level.square()).clamp(min=0)
    spread += _CAUTION * (removed_square - mean_removed.square()).clamp(min=0)
    spread += _ROUNDING * (level_square + removed_square) + torch.finfo(spread.dtype).tiny
    slopes = (windows.means(level * removed) - mean_level * mean_removed) / spread
    return slopes, mean_removed - slopes * mean_level


class _Windows:
    """Overlapping Gaussian windows along some axes, over images that are zero outside of some of the voxels.

    Over the windows, the weights of a voxel sum to one, and a window's mean is by the same weights: mixing the means
    keeps constants and sums.
    """

    def __init__(self, inside: Tensor, axes: Sequence[int], width: float) -> None:
        self._weights = {axis: _gaussians(inside.shape[axis], width).to(inside.device) for axis in axes}
        self._shares = self._gather(inside.float()).clamp_(min=torch.finfo(torch.float32).tiny)

    def means(self, image: Tensor) -> Tensor:
        """Of an image, in each window."""
        return self._gather(image).div_(self._shares)

    def mix(self, values: Tensor) -> Tensor:
        """An image of what is known in each window."""
        for axis, weights in reversed(self._weights.items()):  # fewest numbers to move about
            values = torch.tensordot(weights, values, dims=([0], [axis])).movedim(0, axis)
        return values

    def _gather(self, image: Tensor) -> Tensor:
        for axis, weights in self._weights.items():
            image = torch.tensordot(weights, image, dims=([1], [axis])).movedim(0, axis)
        return image


def _gaussians(size: int, width: float) -> Tensor:
    """(windows, size): Gaussians at most ``width`` apart, reflected at both ends, whose sum is one everywhere."""
    count = math.ceil(size / width)
    centres = (np.arange(count) + 0.5)[:, None] * size / count
    places = np.arange(size) + 0.5
    weights = np.zeros((count, size))
    for turn in range(-math.ceil(5 * width / size), math.ceil(5 * width / size) + 1):
        for place in (places, -places):
            weights += np.exp(-((place + 2 * turn * size - centres) ** 2) / (2 * width**2))
    return torch.from_numpy((weights / weights.sum(axis=0)).astype(np.float32))


def _constant_regions(image: Tensor, axes: Sequence[int]) -> Tensor:
    """Where a voxel lies in a box of ``_BLANK`` voxels along each axis that are all equal."""
    low = high = image
    widths = {axis: min(_BLANK, image.shape[axis]) for axis in axes}
    for axis, width in widths.items():
        low, high = low.unfold(axis, width, 1).amin(-1), high.unfold(axis, width, 1).amax(-1)
    return _boxes(low == high, widths)


def _opened(mask: Tensor, widths: Mapping[int, int]) -> Tensor:
    """Where a voxel of a mask lies in a box of such widths (by axis) that is all of the mask."""
    widths = {axis: min(width, mask.shape[axis]) for axis, width in widths.items()}
    for axis, width in widths.items():
        mask = mask.unfold(axis, width, 1).all(-1)
    return _boxes(mask, widths)


def _boxes(corners: Tensor, widths: Mapping[int, int]) -> Tensor:
    """The boxes of such widths (by axis) that begin where ``corners`` is true."""
    for axis, width in widths.items():
        margins = [0, 0] * (corners.ndim - 1 - axis) + [width - 1, width - 1]
        corners = torch.nn.functional.pad(corners, margins).unfold(axis, width, 1).any(-1)
    return corners


def warn_of_fall(name: object, noisy: float, denoised: float, darkest: float) -> None:
    """Say so where the mean fell by more than ``NOTICEABLE``, for no file said that this is right.

    Args:
        name: Of the image.
        noisy: Mean before, in stored values.
        denoised: Mean after.
        darkest: From where means count: the lower end of the image's range.
    """
    if noisy - denoised > NOTICEABLE * (noisy - darkest) > 0:
        logger.warning(
            "%s: the mean fell from %.4g to %.4g, as a noise floor was removed; that is right for magnitude MRI alone. "
            "For CT, PET, SPECT and counts keep it (--noise-floor keep).",
            name,
            noisy,
            denoised,
        )


class NoiseFloord(MapTransform):
    """Keep the local means of images that are not MRI, before the normalisation is undone; `keep_means` says how.

    Placed before ``BlendStrengthd``: what still holds noise is no guide to levels.

    Args:
        keys: The denoised image(s).
        noisy_key: The network's input, of the same shape, whose ``modality`` (meta field) counts.
        noise_floor: ``remove`` leaves the denoised image as it is, ``keep`` keeps means, ``auto`` keeps them where a
            modality other than MR is named, and warns where none is and the mean fell.
        spatial_dims: Of the network.
        strength: Of the blend to come, for the warning.
        warns: Whether to warn at all: of noise that was added, it is known whether it lifts the mean.
        allow_missing_keys: Skip keys that a case does not have.

    Raises:
        UsageError: If ``noise_floor`` is none of these.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        noisy_key: str = "image",
        noise_floor: str = "auto",
        spatial_dims: int = 3,
        strength: float = 1.0,
        warns: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        keeps_means(noise_floor)  # refuses any other
        self.warns = warns
        self.strength = strength
        self.noisy_key = noisy_key
        self.noise_floor = noise_floor
        self.spatial_dims = spatial_dims

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case with predictions whose means are kept, if they are to be."""
        case = dict(data)
        if self.noise_floor == "remove":
            return case
        meta = getattr(case[self.noisy_key], "meta", {})
        modality = meta.get("modality", "")
        keep = keeps_means(self.noise_floor, modality)
        noisy = convert_to_tensor(case[self.noisy_key], track_meta=False, dtype=torch.float32)
        for key in self.key_iterator(case):
            denoised = convert_to_tensor(case[key], track_meta=False, dtype=torch.float32, device=noisy.device)
            if keep:
                case[key] = convert_to_dst_type(keep_means(noisy, denoised, self.spatial_dims), case[key])[0]
            elif self.warns and not modality:
                offset, scale = meta.get("intensity_offset", 0.0), meta.get("intensity_scale", 1.0)
                before, after = (float(image.mean(dtype=torch.float64)) * scale + offset for image in (noisy, denoised))
                after = before + self.strength * (after - before)
                warn_of_fall(meta.get("filename_or_obj", "the image"), before, after, offset)
        return case
