"""Intensities: the affine map of a scan to about [0, 1], and its exact way back.

The range comes from robust percentiles, so that one hot voxel does not set the scale, and nothing is ever clipped:
what lies outside the percentiles maps outside [0, 1] and returns to what it was. Offset and scale are numbers that
float32 can hold, so a round trip loses no more than the rounding of float32 itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys, convert_to_tensor

from adl_monai.errors import ScanFileError

MAX_SAMPLED_VOXELS = 2**21
MOST_TIMES = 200  # wider or narrower than a fixed range: 0 to 1 for 0 to 255, or 16 bits for 8


def robust_range(image: np.ndarray | torch.Tensor, lower: float = 0.5, upper: float = 99.5) -> tuple[float, float]:
    """Offset and scale such that ``(image - offset) / scale`` lies mostly in [0, 1].

    ``offset`` is the lower percentile and ``scale`` the distance to the upper one, over all voxels and channels.
    Above two million voxels the percentiles are taken of every k-th voxel, the same ones each time. Where the
    percentiles coincide (a sparse image), the minimum and maximum of all voxels stand in.

    Args:
        image: any shape, any real dtype, in stored values.
        lower: percentile mapped to 0, in [0, 100).
        upper: percentile mapped to 1, in (``lower``, 100].

    Returns:
        ``(offset, scale)``, both exact in float32. A constant image returns its value and a scale of 0.

    Raises:
        ValueError: If the percentiles are out of order or the image is empty.
        ScanFileError: If the range is not finite (NaN or infinite voxels, or values beyond float32).
    """
    if not 0 <= lower < upper <= 100:
        raise ValueError(f"percentiles ({lower}, {upper}) given; expected 0 <= lower < upper <= 100.")
    values = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if values.size == 0:
        raise ValueError(f"an image of shape {values.shape} has no voxels, hence no range; check the crop or the file.")
    sampled = values.reshape(-1)[:: sample_step(values.size)]
    return range_of_sample(sampled, lambda: (float(values.min()), float(values.max())), lower, upper)


def in_fixed_range(found: tuple[float, float], fixed: Sequence[float] | None) -> tuple[float, float]:
    """Offset and scale of a fixed range instead of those that an image has by itself.

    A network that knows the scale of its images can know how strong their noise is: CT in HU, pictures of 8 bits.

    Args:
        found: ``robust_range`` of the image. A constant image keeps it.
        fixed: (low, high) in stored values, which become 0 and 1, or None for ``found`` as it is.

    Raises:
        ScanFileError: If the image's own range is over two hundred times wider or narrower: it has another unit.
    """
    if fixed is None or found[1] == 0:
        return found
    low, scale = float(np.float32(fixed[0])), float(np.float32(fixed[1] - fixed[0]))
    if not 1 / MOST_TIMES <= found[1] / scale <= MOST_TIMES:
        raise ScanFileError(
            f"most intensities lie between {found[0]:.6g} and {found[0] + found[1]:.6g}, but the model is for images "
            f"whose values are between {fixed[0]:.6g} and {fixed[1]:.6g}; convert the image to that unit, or use a "
            "model that takes any (adl3d, adl2d)."
        )
    return low, scale


def check_fixed_range(fixed: Sequence[float]) -> None:
    """Raise a ValueError unless these are two finite numbers that rise."""
    low, high = (float(value) for value in fixed)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"intensity range {list(fixed)} given; expected two finite numbers that rise.")


def range_of_sample(
    sampled: np.ndarray, extremes: Callable[[], tuple[float, float]], lower: float, upper: float
) -> tuple[float, float]:
    """``robust_range`` of an image of which only every k-th voxel is at hand, for images that no memory holds.

    Args:
        sampled: The voxels ``image.reshape(-1)[::sample_step(image.size)]``, in any order.
        extremes: Gives the smallest and the largest of all voxels; asked only if the percentiles coincide.
        lower: As in ``robust_range``.
        upper: As in ``robust_range``.

    Raises:
        ScanFileError: As ``robust_range`` does.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows here is refused below
        low, high = np.percentile(sampled.astype(np.float64), (lower, upper))
        if low == high:
            low, high = extremes()
        # Plus 0.0: whether a lowest zero is -0.0 would hang on the order of the sampled voxels.
        offset, scale = float(np.float32(low)) + 0.0, float(np.float32(high - low))
    if not (math.isfinite(offset) and math.isfinite(scale)):
        raise ScanFileError(
            f"the intensity range is not finite (from {low} to {high}): the image holds NaN, infinite or enormous "
            "values; mend the file or choose a policy that fills such voxels."
        )
    return offset, scale


def sample_step(size: int) -> int:
    """The k of ``robust_range``'s every k-th voxel, in C order, of an image of ``size`` voxels."""
    step = max(1, math.ceil(size / MAX_SAMPLED_VOXELS))
    # A step that shares no factor with the voxel count visits every row and column, not one plane again and again.
    while math.gcd(step, size) != 1:
        step += 1
    return step


def normalize(image: torch.Tensor, offset: float, scale: float) -> torch.Tensor:
    """Map stored values to about [0, 1]: ``(image - offset) / scale``, float32, never clipped.

    Raises:
        ValueError: If ``scale`` is not positive; a constant image has no scale of its own, use 1.
    """
    _require_positive(scale)
    # Subtracting first keeps small contrasts on a large offset: the difference of close float32 numbers is exact.
    return (image.to(torch.float32) - offset).div_(scale)


def denormalize(image: torch.Tensor, offset: float, scale: float) -> torch.Tensor:
    """The way back of ``normalize``: ``image * scale + offset`` in stored values, float32, never clipped.

    What is zero but for the rounding of the offset is zero: masks are made by asking for it.
    """
    _require_positive(scale)
    values = (image.to(torch.float32) * scale).add_(offset)
    return values.masked_fill_(values.abs() <= float(np.spacing(np.float32(abs(offset)))), 0.0) if offset else values


class RobustNormalized(MapTransform, InvertibleTransform):
    """Normalise the images of a case by the robust range of one of them, invertibly.

    All keys share the map of the reference key, so that a noisy image and its clean label stay comparable. The map is
    kept twice in each MetaTensor: in ``applied_operations``, so that MONAI's ``Invertd`` undoes it on a prediction,
    and as plain numbers in the meta fields ``intensity_offset``, ``intensity_scale`` and ``constant_image``. A
    constant image gets scale 1 and becomes 0 everywhere.

    Args:
        keys: images to normalise, (C, H, W[, D]) in stored values; they become float32.
        reference_key: the image whose range sets the map; by default the first of ``keys`` that the case has.
        lower: percentile mapped to 0.
        upper: percentile mapped to 1.
        allow_missing_keys: skip keys that a case does not have.
        fixed: (low, high) in stored values, mapped to 0 and 1 instead of the percentiles, see ``in_fixed_range``.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        reference_key: str | None = None,
        lower: float = 0.5,
        upper: float = 99.5,
        allow_missing_keys: bool = False,
        fixed: Sequence[float] | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference_key = reference_key
        self.lower = lower
        self.upper = upper
        self.fixed = fixed
        if fixed is not None:
            check_fixed_range(fixed)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Normalise the case; the input mapping and its images are left as they were."""
        case = dict(data)
        keys = list(self.key_iterator(case))
        if not keys:
            return case
        reference = keys[0] if self.reference_key is None else self.reference_key
        if reference not in case:
            raise KeyError(
                f"the case has no {reference!r} to take the intensity range from; it has {sorted(map(str, case))}."
            )
        offset, scale = in_fixed_range(robust_range(case[reference], self.lower, self.upper), self.fixed)
        constant = scale == 0
        scale = scale or 1.0
        for key in keys:
            image = normalize(convert_to_tensor(case[key], track_meta=get_track_meta()), offset, scale)
            if isinstance(image, MetaTensor):
                image.meta["intensity_offset"] = offset
                image.meta["intensity_scale"] = scale
                image.meta["constant_image"] = constant
                image = self.push_transform(image, extra_info={"offset": offset, "scale": scale})
            case[key] = image
        return case

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the images to stored values, each by the map recorded with it."""
        case = dict(data)
        for key in self.key_iterator(case):
            recorded = self.pop_transform(case, key)[TraceKeys.EXTRA_INFO]
            image = convert_to_tensor(case[key], track_meta=get_track_meta())
            case[key] = denormalize(image, float(recorded["offset"]), float(recorded["scale"]))
        return case


def _require_positive(scale: float) -> None:
    if not scale > 0:
        raise ValueError(f"intensity scale {scale} given; expected a positive number (use 1 for a constant image).")
