"""Pyramids: the area-averaged scales of the targets and the à-trous detail planes of the textural loss."""

from __future__ import annotations

from functools import lru_cache

import torch
from monai.networks.layers.factories import Pool
from torch import Tensor, nn

B3_SPLINE = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def area_pyramid(clean: Tensor, scales: int = 3) -> list[Tensor]:
    """The image at full, 1/2, 1/4, ... size, each the area average of the one before.

    Args:
        clean: (B, C, H, W[, D]), any range.
        scales: Number of images, at least 1.

    Returns:
        float32 images; sizes are halved and rounded down.
    """
    halve = Pool["avg", clean.ndim - 2](2)
    images = [clean.float()]
    for _ in range(scales - 1):
        images.append(halve(images[-1]))
    return images


def detail_planes(image: Tensor, planes: int = 3) -> list[Tensor]:
    """Detail planes Δ_j of the à-trous wavelet transform with the B3 spline.

    Δ_j is the difference of two successive smoothings: plane j holds the band of about 2^j voxels. The planes and the
    last smoothing add up to the image. Borders are reflected, also where the filter reaches beyond a small image.

    Args:
        image: (B, C, H, W[, D]), any range.
        planes: Number J of planes, finest first.

    Returns:
        J float32 planes of the image's shape.

    Source: Ghahremani et al., arXiv 2204.14100; Starck, Fadili & Murtagh, IEEE TIP 16(2), 2007.
    """
    details = []
    smooth = image.float()
    for level in range(planes):
        smoother = smooth
        for axis in range(2, image.ndim):
            smoother = smooth_axis(smoother, axis, hole=2**level)
        details.append(smooth - smoother)
        smooth = smoother
    return details


def smooth_axis(image: Tensor, axis: int, hole: int) -> Tensor:
    """Smooth along one axis with the B3 spline whose taps are ``hole`` voxels apart.

    One product with a band matrix, borders included: for patches faster than shifted views and adds, or a depthwise
    convolution, on a CPU, and two operations instead of dozens on a GPU.
    """
    with torch.autocast(image.device.type, enabled=False):  # which would make it a product in lower precision
        matrix = smoothing_matrix(image.shape[axis], hole, image.device)
        return (matrix @ image.reshape(*image.shape[: axis + 1], -1)).reshape(image.shape)


@lru_cache(maxsize=64)
def smoothing_matrix(size: int, hole: int, device: torch.device) -> Tensor:
    """The (size, size) matrix that smooths a line; the line is folded at both ends as often as the filter reaches."""
    with torch.inference_mode(False):
        line = torch.arange(size)
        matrix = torch.zeros(size, size)
        for tap, weight in enumerate(B3_SPLINE):
            position = (line + (tap - 2) * hole).remainder(max(2 * (size - 1), 1))
            position = torch.minimum(position, 2 * (size - 1) - position)
            matrix.index_put_((line, position), torch.tensor(weight), accumulate=True)
        return matrix.to(device)


class PyramidalTexturalLoss(nn.Module):
    r"""Pyramidal textural loss, the mean absolute error of every detail plane, summed over the planes.

    .. math:: L_{pyr} = \sum_{j=1}^{J} E\,|\Delta_j \text{denoised} - \Delta_j \text{clean}|

    Minimising it makes the denoiser restore the texture of each band of scales, where the L1 loss alone settles for a
    blurred mean. A constant offset costs nothing here. It does not concern the discriminator.

    Args:
        planes: Number J of detail planes, at least 1; all of them count.

    Shape:
        denoised, clean: (B, C, H, W[, D]), any range, the same for both. Returns a float32 scalar.

    Raises:
        ValueError: If ``planes`` is below 1.

    Source: Ghahremani et al., 2022, arXiv 2204.14100, pyramidal textural loss.

    Example:
        >>> loss = PyramidalTexturalLoss(planes=3)
        >>> clean = torch.eye(16)[None, None]
        >>> loss(clean + 0.5, clean).item() < 1e-6
        True
        >>> loss(clean.mean().expand_as(clean), clean).item() > 0.05
        True
    """

    def __init__(self, planes: int = 3) -> None:
        super().__init__()
        if planes < 1:
            raise ValueError(f"planes is {planes}; expected at least 1.")
        self.planes = planes

    def forward(self, denoised: Tensor, clean: Tensor) -> Tensor:
        """Sum over the planes of the mean absolute difference."""
        # Δ is linear: the planes of the difference are the differences of the planes, at half the work.
        details = detail_planes(denoised.float() - clean.float(), self.planes)
        return torch.stack([detail.abs().mean() for detail in details]).sum()
