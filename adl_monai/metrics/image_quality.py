"""How close a denoised image is to its clean reference: PSNR and SSIM, for 2D and 3D, on MONAI's metrics.

``psnr`` and ``ssim`` give one value per image; inside engines use ``monai.metrics.PSNRMetric`` and ``SSIM``. Both need
the ``data_range`` named: guessed from an image it would differ from scan to scan, and the scores with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.metrics import PSNRMetric, SSIMMetric
from monai.utils import MetricReduction, convert_to_tensor

WINDOW = 11  # voxels: the Gaussian of Wang et al. (sigma 1.5) cut off at 3.5 sigma
SIGMA = 1.5


def psnr(denoised: torch.Tensor, clean: torch.Tensor, data_range: float) -> torch.Tensor:
    """Peak signal-to-noise ratio, ``20 log10(data_range) - 10 log10(mean((denoised - clean)^2))``.

    Args:
        denoised: (B, C, H, W[, D]).
        clean: The reference, of the same shape.
        data_range: Largest minus smallest value that the kind of image can take, in the unit of the images.

    Returns:
        (B,) decibels over all channels and voxels of each image. Identical images get ``inf``, and so does a mean over
        a batch that holds such a pair; NaN voxels give NaN.

    Raises:
        ValueError: For shapes that differ or are not those of images, or a ``data_range`` that is not positive.

    Example:
        >>> psnr(torch.full((1, 1, 8, 8), 0.1), torch.zeros(1, 1, 8, 8), data_range=1.0)
        tensor([20.])
    """
    denoised, clean = _checked(denoised, clean, data_range)
    return torch.as_tensor(PSNRMetric(max_val=data_range, reduction="none")(denoised, clean)).flatten()


def ssim(denoised: torch.Tensor, clean: torch.Tensor, data_range: float) -> torch.Tensor:
    """Structural similarity (Wang et al., IEEE TIP 13:600, 2004): Gaussian window, sigma 1.5, 11 voxels wide.

    Only voxels whose whole window lies inside the image count, which makes the value that of scikit-image's
    ``structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)``. Along an axis of fewer
    than 11 voxels the window shrinks to the largest odd width that fits; a single slice gets its 2D value.

    Args:
        denoised: (B, C, H, W[, D]).
        clean: The reference, of the same shape.
        data_range: Largest minus smallest value that the kind of image can take, in the unit of the images.

    Returns:
        (B,) values of at most 1 (identical images), the mean over channels and voxels; NaN voxels give NaN.

    Raises:
        ValueError: For shapes that differ or are not those of images, or a ``data_range`` that is not positive.

    Example:
        >>> clean = torch.rand(2, 1, 32, 32, 5)
        >>> ssim(clean, clean, data_range=1.0)
        tensor([1., 1.])
    """
    denoised, clean = _checked(denoised, clean, data_range)
    return torch.as_tensor(SSIM(denoised.ndim - 2, data_range, reduction="none")(denoised, clean)).flatten()


class SSIM(SSIMMetric):
    """MONAI's ``SSIMMetric`` for images of any thickness: the window shrinks along axes of fewer than 11 voxels.

    Args:
        spatial_dims: 2 or 3.
        data_range: Largest minus smallest value that the kind of image can take; required, unlike in MONAI.
        reduction: As in MONAI; ``mean`` leaves NaN values out.
        get_not_nans: As in MONAI.
    """

    def __init__(
        self,
        spatial_dims: int,
        data_range: float,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
    ) -> None:
        super().__init__(
            spatial_dims,
            data_range=data_range,
            win_size=WINDOW,
            kernel_sigma=SIGMA,
            reduction=reduction,
            get_not_nans=get_not_nans,
        )

    def _compute_metric(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        denoised, clean = y_pred, y  # MONAI's base class sets the names
        if denoised.ndim != self.spatial_dims + 2:
            raise ValueError(
                f"SSIM got an image of shape {tuple(denoised.shape)}; with spatial_dims={self.spatial_dims} it expects "
                f"(B, C, {'H, W' if self.spatial_dims == 2 else 'H, W, D'})."
            )
        bands = [
            gaussian_band(size, width).to(clean)
            for size, width in zip(clean.shape[2:], window_for(clean.shape[2:]), strict=True)
        ]
        # Differences of squares far from zero, as of 1000 ± 1, would be lost to the rounding of float32.
        offset = clean.flatten(1).mean(1).view(-1, *[1] * (clean.ndim - 1))
        denoised, clean = denoised - offset, clean - offset
        mean_d, mean_c = _windowed(denoised, bands), _windowed(clean, bands)
        covariance = _windowed(denoised * clean, bands) - mean_d * mean_c
        variances = _windowed(denoised.square() + clean.square(), bands) - mean_d.square() - mean_c.square()
        mean_d, mean_c = mean_d + offset, mean_c + offset
        c1, c2 = (self.k1 * self.data_range) ** 2, (self.k2 * self.data_range) ** 2
        luminance = (2 * mean_d * mean_c + c1) / (mean_d.square() + mean_c.square() + c1)
        contrast_structure = (2 * covariance + c2) / (variances + c2)
        return (luminance * contrast_structure).flatten(1).mean(1, keepdim=True)


def window_for(spatial_shape: Sequence[int]) -> tuple[int, ...]:
    """The window's width along each axis: 11, or the largest odd number that fits a thinner axis."""
    return tuple(min(WINDOW, size - (size + 1) % 2) for size in spatial_shape)


def gaussian_band(size: int, width: int) -> torch.Tensor:
    """What gives the Gaussian-weighted mean of each whole window along an axis: (size - width + 1, size).

    A product with it takes a tenth of the time of MONAI's ``separable_filtering`` and gives the same.
    """
    weights = torch.exp(-((torch.arange(width) - (width - 1) / 2) ** 2) / (2 * SIGMA**2))
    band = torch.zeros(size - width + 1, size)
    for offset, weight in enumerate(weights / weights.sum()):
        band.diagonal(offset).fill_(weight)
    return band


def _windowed(image: torch.Tensor, bands: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of each window, axis by axis: (B, C, H, W[, D]), smaller by the width less one."""
    with torch.autocast(image.device.type, enabled=False):  # which would make it a product in lower precision
        for axis, band in enumerate(bands, start=2):
            image = (image.movedim(axis, -1) @ band.T).movedim(-1, axis)
    return image


def _checked(denoised: torch.Tensor, clean: torch.Tensor, data_range: float) -> tuple[torch.Tensor, torch.Tensor]:
    if denoised.shape != clean.shape or denoised.ndim not in (4, 5) or not denoised.numel():
        raise ValueError(
            f"the denoised image has shape {tuple(denoised.shape)}, the clean one {tuple(clean.shape)}; expected one "
            f"shape (B, C, H, W) or (B, C, H, W, D) for both."
        )
    if not (math.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range is {data_range}; expected a positive number such as 1.0 for images in [0, 1].")
    # Plain float32: integers would wrap and half precision overflow when squared.
    denoised, clean = (convert_to_tensor(image, dtype=torch.float32, track_meta=False) for image in (denoised, clean))
    return denoised, clean
