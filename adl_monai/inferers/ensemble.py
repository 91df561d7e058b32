"""Self-ensemble: the mean over mirror images, which a network without mirror symmetry gains from."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

from torch import Tensor

from adl_monai.errors import UsageError

MIRROR_IMAGES = (1, 2, 4, 8)


def check_ensemble(count: int | bool) -> int:
    """The number of mirror images; False and True, as bundles have had it, are one and all.

    Raises:
        UsageError: If it is not 1, 2, 4 or 8.
    """
    if isinstance(count, bool):
        return 8 if count else 1
    if count not in MIRROR_IMAGES:
        raise UsageError(f"ensemble is {count!r}; expected a number of mirror images: 1, 2, 4 or 8.")
    return int(count)


def mirror_images(count: int, spatial_dims: int) -> list[tuple[int, ...]]:
    """The axes, counted from 0, that each mirror image is flipped along; the image itself comes first.

    Two are the image and its point reflection, four in 3D the rotations by half a turn, eight all there are; in 2D
    there are four. Each such set mirrored is itself again, so every direction counts the same.
    """
    every = [axes for length in range(spatial_dims + 1) for axes in combinations(range(spatial_dims), length)]
    if count == 1:
        return every[:1]
    if count == 2:
        return [every[0], every[-1]]
    if count < len(every):
        return [axes for axes in every if len(axes) % 2 == 0]
    return every


def mean_over_flips(network: Callable[[Tensor], Tensor], noisy: Tensor, count: int = 8) -> Tensor:
    """Denoise mirror images, mirror back, average: one forward each, of the memory of one.

    Args:
        network: Maps (B, C, H, W[, D]) to one tensor of that shape.
        noisy: (B, C, H, W[, D]).
        count: 1, 2, 4 or 8; 8 gives the 4 there are in 2D.

    Source: Timofte, Rothe and Van Gool, "Seven ways to improve example-based single image super resolution",
    CVPR 2016, without their quarter turns, which a volume of anisotropic voxels does not allow.
    """
    flips = [tuple(2 + axis for axis in axes) for axes in mirror_images(count, noisy.ndim - 2)]
    total = network(noisy)
    for axes in flips[1:]:
        total = total + network(noisy.flip(axes)).flip(axes)
    return total / len(flips) if len(flips) > 1 else total
