"""How noise is spread: over the frequencies, by a filter's transfer function, and over the image, by a map of levels.

A transfer function is real, (H, W[, D]) in the order of ``torch.fft.fftfreq``, with a mean square of 1: what it filters
keeps the power of white noise. Values without spatial axes, a sample of an image's intensities, have no neighbours and
no places: for them, all is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate

FWHM = math.sqrt(8 * math.log(2))  # of a Gaussian, in standard deviations
BAND = 0.125  # cycles per voxel between two random gains
CONTROL_POINTS = 3  # of the level along each axis


def correlating_filter(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Draw how neighbours share noise after interpolation, zero-filled k-space or a smooth CT kernel.

    Along each axis, the noise is smoothed by a Gaussian of up to 2 voxels FWHM, and its spectrum is cut somewhere
    between half and all of the Nyquist frequency. Either is absent with probability 1/3.

    Args:
        shape: Sizes of the spatial axes.
        generator: The first numbers are taken from it.
    """
    return _separable(shape, 2.0, 0.25, generator)


def smoothing_filter(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Draw how a reconstruction smooths: as ``correlating_filter``, or, in two of three draws, alike along the axes.

    That is by a Gaussian of up to 3 voxels FWHM, along all axes but one in a third of the draws: slices that were
    reconstructed by themselves.

    Args:
        shape: Sizes of the spatial axes.
        generator: The first numbers are taken from it.
    """
    kind, width, which, place = torch.rand(4, generator=generator, device=generator.device).tolist()
    if kind < 1 / 3:
        return correlating_filter(shape, generator)
    left_out = int(place * len(shape)) if which < 1 / 3 else None
    transfer = torch.ones(())
    for axis, size in enumerate(shape):
        factor = _gaussian(torch.fft.fftfreq(size), 0.0 if axis == left_out else 3.0 * width)
        transfer = _along_next_axis(transfer, factor)
    return transfer


def random_transfer(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Draw a transfer function from a wide family, so that a network cannot rely on one kind of spectrum.

    It is the product of smoothing and cuts along the axes (up to 3 voxels FWHM, down to 3/10 of the Nyquist frequency,
    each absent with probability 1/3) and of a random smooth gain over the radial frequency, which makes it blue, as
    ramp-filtered CT noise is, or anything between. Up to a fifth of the power is white, in one half of the draws.

    Args:
        shape: Sizes of the spatial axes.
        generator: The first numbers are taken from it.
    """
    if not shape:
        return torch.ones(())
    transfer = _separable(shape, 3.0, 0.15, generator)
    radius = torch.zeros(())
    for size in shape:
        radius = torch.sqrt(radius.unsqueeze(-1) ** 2 + torch.fft.fftfreq(size) ** 2)
    strength, white = torch.rand(2, generator=generator, device=generator.device).tolist()
    count = math.ceil(0.5 * math.sqrt(len(shape)) / BAND) + 1
    gains = strength * torch.randn(count, generator=generator, device=generator.device).cpu()
    place = (radius / BAND).clamp(max=count - 1.001)
    low = place.floor().long()
    transfer = transfer * torch.exp(torch.lerp(gains[low], gains[low + 1], place - low))
    power = transfer.square() / transfer.square().mean()
    share = 0.2 * max(0.0, 2 * white - 1)
    return ((1 - share) * power + share).sqrt()


def level_map(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Draw a smooth map of noise levels, with a root mean square of 1: (H, W[, D]).

    Log-normal levels at three points along each axis, of a random spread of up to 0.5, linear between them.

    Args:
        shape: Sizes of the spatial axes.
        generator: The first numbers are taken from it.
    """
    if not shape:
        return torch.ones(())
    spread = 0.5 * torch.rand((), generator=generator, device=generator.device).cpu()
    points = torch.randn(*[CONTROL_POINTS] * len(shape), generator=generator, device=generator.device).cpu()
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(shape)]
    levels = interpolate((spread * points).exp()[None, None], tuple(shape), mode=mode, align_corners=True)[0, 0]
    return levels / levels.square().mean().sqrt()


def _separable(shape: Sequence[int], fwhm: float, lowest_cut: float, generator: torch.Generator) -> torch.Tensor:
    """Smooth each axis by up to ``fwhm`` voxels and cut it between ``lowest_cut`` and 1/2 cycles per voxel."""
    transfer = torch.ones(())
    for size in shape:
        width, cut = torch.rand(2, generator=generator, device=generator.device).tolist()
        frequency = torch.fft.fftfreq(size).abs()
        factor = _gaussian(frequency, fwhm * max(0.0, 1.5 * width - 0.5))
        factor[frequency > lowest_cut + 1.5 * (0.5 - lowest_cut) * cut] = 0.0
        transfer = _along_next_axis(transfer, factor)
    return transfer


def _along_next_axis(transfer: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """A transfer function of one more axis, its mean square kept."""
    return transfer.unsqueeze(-1) * (factor / factor.square().mean().sqrt())


def _gaussian(frequency: torch.Tensor, fwhm: float) -> torch.Tensor:
    return torch.exp(-2 * (math.pi * (fwhm / FWHM) * frequency) ** 2)
