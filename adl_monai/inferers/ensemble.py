"""Self-ensemble: the mean over mirror images, which a network without mirror symmetry gains from."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

from torch import Tensor


def mean_over_flips(network: Callable[[Tensor], Tensor], noisy: Tensor) -> Tensor:
    """Denoise every mirror image, mirror back, average: 4 forwards in 2D, 8 in 3D, each of the memory of one.

    Args:
        network: Maps (B, C, H, W[, D]) to one tensor of that shape.
        noisy: (B, C, H, W[, D]).

    Source: Timofte, Rothe and Van Gool, "Seven ways to improve example-based single image super resolution",
    CVPR 2016, without their rotations, which a volume of anisotropic voxels does not allow.
    """
    axes = range(2, noisy.ndim)
    flips = [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]
    total = network(noisy)
    for chosen in flips[1:]:
        total = total + network(noisy.flip(chosen)).flip(chosen)
    return total / len(flips)
