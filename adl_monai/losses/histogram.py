"""Intensity histograms that gradients pass through, and the loss on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

SMOOTHING = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def soft_histogram(image: Tensor, bins: int = 256, value_range: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Differentiable intensity histogram H of each channel.

    Bin centres are spread evenly from one end of the range to the other; a value is shared between its two
    neighbouring centres in proportion (linear binning), and the counts are smoothed a little over the bins so that
    the gradient changes gently from bin to bin. Neither step loses or adds mass. Values outside the range count in
    the edge bins and get no gradient. Memory grows with the number of voxels alone, not with voxels times bins.

    Args:
        image: (B, C, H, W[, D]), about ``value_range``.
        bins: Number of bins, at least 3.
        value_range: Centres of the first and the last bin.

    Returns:
        (B, C, bins) float32 density whose mean over the bins is 1. NaN anywhere in a channel makes its histogram NaN.

    Raises:
        ValueError: If there are fewer than 3 bins, or the range is empty.

    Source: Ghahremani et al., arXiv 2204.14100 (the loss); Wand, J. Comput. Graph. Stat. 3(4), 1994 (linear binning).
    """
    low, high = value_range
    if bins < 3 or not low < high:
        raise ValueError(f"bins is {bins} and value_range {value_range}; expected at least 3 bins, low below high.")
    position = (image.float().flatten(2) - low) * ((bins - 1) / (high - low))
    position = position.clamp(0, bins - 1)
    # Clamped after the conversion: NaN converts to any integer, and a wild index would bring a GPU down.
    left = position.detach().long().clamp_(0, bins - 2)
    share = position - left
    # To the left centre goes 1 - share. The ones have no gradient, so that one differentiable scatter is enough.
    to_right = share.new_zeros(*share.shape[:2], bins - 1).scatter_add(2, left, share)
    with torch.no_grad():
        count = torch.zeros_like(to_right).scatter_add_(2, left, torch.ones_like(share))
    histogram = torch.nn.functional.pad(count - to_right, (0, 1)) + torch.nn.functional.pad(to_right, (1, 0))
    return smooth_bins(histogram) * (bins / share.shape[2])


def smooth_bins(histogram: Tensor) -> Tensor:
    """Smooth (B, C, bins) over the bins; what would fall beyond an end is folded back, so the mass stays."""
    bins = histogram.shape[2]
    front, back = histogram[..., :2].flip(2), histogram[..., -2:].flip(2)
    padded = torch.cat([front, histogram, back], dim=2)
    shifted = torch.stack([padded.narrow(2, tap, bins) for tap in range(len(SMOOTHING))])
    return (shifted * shifted.new_tensor(SMOOTHING)[:, None, None, None]).sum(0)


def logcosh(difference: Tensor) -> Tensor:
    """log(cosh(d)) without overflow: d²/2 near zero, |d| - log 2 far away."""
    size = difference.abs()
    return size + softplus(-2 * size) - math.log(2)


class HistogramLoss(nn.Module):
    r"""Histogram loss, the log-cosh distance of two soft intensity histograms.

    .. math:: L_{hist} = E\,\log\cosh(H[\text{denoised}] - H[\text{clean}])

    Minimising it makes the denoiser keep the contrast: the share of voxels at each intensity, wherever they lie. It
    says nothing about where an intensity belongs, so it only works beside a voxel-wise loss. It does not concern the
    discriminator.

    Args:
        bins: Number of histogram bins.
        value_range: Centres of the first and the last bin.

    Shape:
        denoised, clean: (B, C, H, W[, D]), about ``value_range``. Returns a float32 scalar, the mean over batch,
        channels and bins.

    Raises:
        ValueError: If there are fewer than 3 bins, or the range is empty.

    Source: Ghahremani et al., 2022, arXiv 2204.14100, histogram loss.

    Example:
        >>> loss = HistogramLoss(bins=64)
        >>> clean = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
        >>> loss(clean.flip(3), clean).item() < 1e-6
        True
        >>> loss(0.5 * clean, clean).item() > 0.1
        True
    """

    def __init__(self, bins: int = 256, value_range: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        self.bins = bins
        self.value_range = (float(value_range[0]), float(value_range[1]))
        soft_histogram(torch.zeros(1, 1, 1, 1), self.bins, self.value_range)  # refuses what it cannot count in

    def forward(self, denoised: Tensor, clean: Tensor) -> Tensor:
        """Mean log-cosh of the difference of the two histograms."""
        with torch.no_grad():
            target = soft_histogram(clean, self.bins, self.value_range)
        return logcosh(soft_histogram(denoised, self.bins, self.value_range) - target).mean()
