"""Noise: what is added to a clean image to teach and to test the denoiser.

The ``add_*`` functions are pure: clean float32 image in the normalised scale (about [0, 1], any shape, any values
outside too), level ``sigma`` in the same scale, and a ``torch.Generator``; a new float32 image comes out, never
clipped. For every kind, ``sigma`` is the standard deviation of the noise where the clean intensity is 1 (for Rician
noise, of each of its two channels).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from adl_monai.data.noise_field import correlating_filter, level_map, random_transfer, smoothing_filter

# Noise below half of float32's step at intensity 1 is no noise, and its photon count of 1/sigma² would overflow.
NEGLIGIBLE_SIGMA = 1e-8


def add_gaussian(clean: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """Additive white Gaussian noise: ``clean + sigma·n``, n ~ N(0, 1) (the noise of arXiv 2204.14100)."""
    return clean + sigma * _normal(clean, generator)


def add_rician(clean: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """Magnitude MRI: ``|max(clean, 0) + sigma·n1 + i·sigma·n2|`` (Gudbjartsson and Patz, MRM 34:910, 1995).

    A magnitude is never negative, so a negative clean value counts as no signal; there the mean is
    ``sigma·sqrt(pi/2)``.
    """
    return _magnitude(clean, lambda: sigma * _normal(clean, generator))


def add_poisson(clean: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """Photon counting: ``P(peak·clean) / peak``, with ``peak = 1/sigma²`` counts at intensity 1 (Poisson statistics).

    The variance is ``sigma²·clean`` and the mean of the noise is 0 everywhere: where the clean value is negative there
    are no photons to count and it stays as it is.
    """
    if sigma < NEGLIGIBLE_SIGMA:
        return clean.clone()
    peak = 1.0 / sigma**2
    signal = clean.clamp(min=0)
    counts = torch.poisson((signal * peak).to(generator.device), generator=generator).to(clean.device)
    return clean + (counts / peak - signal)


def add_speckle(clean: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """Multiplicative noise, ``clean·(1 + sigma·n)``, n ~ N(0, 1) (Jain, Fundamentals of Digital Image Processing,
    1989).

    The fully developed speckle of ultrasound and OCT in its simplest form; the standard deviation is ``sigma·|clean|``.
    """
    return clean * (1 + sigma * _normal(clean, generator))


def add_mixed(clean: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """Poisson and Gaussian noise of equal strength at intensity 1 (Foi et al., IEEE Trans. Image Proc. 17:1737, 2008).

    The variance is ``sigma²·(clean + 1)/2``, again with mean 0.
    """
    part = sigma / math.sqrt(2)
    return add_gaussian(add_poisson(clean, part, generator), part, generator)


def add_correlated(clean: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """Gaussian noise that neighbours share, as interpolation, zero-filled k-space and smooth CT kernels leave it.

    Its spectrum is that of ``correlating_filter``. Takes (C, H, W[, D]); channels are independent.
    """
    return clean + sigma * _filtered(clean, correlating_filter(clean.shape[1:], generator), generator)


def add_correlated_rician(clean: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """Magnitude MRI after such filters: Rician noise whose two channels are correlated, with one spectrum."""
    transfer = correlating_filter(clean.shape[1:], generator)
    return _magnitude(clean, lambda: sigma * _filtered(clean, transfer, generator))


def add_clipped(clean: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """Noise that neighbours share, cut off below a floor, as CT is at -1024 HU and PET at zero.

    Gaussian noise with the spectrum of ``smoothing_filter``; values below a floor, which lies up to ``sigma`` below
    0, become the floor. Takes (C, H, W[, D]); channels are independent, with one spectrum and one floor.
    """
    transfer = smoothing_filter(clean.shape[1:], generator)
    floor = -sigma * torch.rand((), generator=generator, device=generator.device).item()
    return (clean + sigma * _filtered(clean, transfer, generator)).clamp(min=floor)


def add_correlated_poisson(clean: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """Photon counts smoothed afterwards, as PET and SPECT are: noise that neighbours share where there is signal.

    The smoothing is ``smoothing_filter``, of the noise alone. Its mean is 0 everywhere, and there is none where
    nothing is counted as far as the filter reaches. In regions of one intensity the variance is ``sigma²·clean``, as
    with ``add_poisson``. Takes (C, H, W[, D]); channels are independent.
    """
    transfer = smoothing_filter(clean.shape[1:], generator)
    gain = float(transfer.flatten()[0])  # of means; what has lost none of its counts to the filter has gain 1
    counted = add_poisson(clean, sigma * gain, generator) - clean
    return clean + _filtered_by(transfer / gain, counted)


def add_nonstationary(clean: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """Gaussian noise of a random spectrum and of a level that varies over the image, as real detectors leave it.

    Spectrum and level are those of ``random_transfer`` and ``level_map``. In one half of the draws the level also rises
    with the signal, as that of photons does: the variance is ``sigma²·(s + (1 - s)·max(clean, 0))`` times the square of
    the map, with s uniform in [0, 1]; in the other half, s is 1. Takes (C, H, W[, D]); channels are independent, with
    one spectrum and one map.
    """
    transfer = random_transfer(clean.shape[1:], generator)
    level = sigma * level_map(clean.shape[1:], generator).to(clean.device)
    constant = min(1.0, 2 * torch.rand((), generator=generator, device=generator.device).item())
    level = level * (constant + (1 - constant) * clean.clamp(min=0)).sqrt()
    return clean + level * _filtered(clean, transfer, generator)


def add_nonstationary_rician(clean: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """Magnitude MRI with such noise in both of its channels, as parallel imaging leaves it (g-factor)."""
    transfer = random_transfer(clean.shape[1:], generator)
    level = sigma * level_map(clean.shape[1:], generator).to(clean.device)
    return _magnitude(clean, lambda: level * _filtered(clean, transfer, generator))


def add_masked(clean: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """Noise in what was cut out afterwards, as vessels and brains are: where there is no signal, there is none.

    Gaussian noise with the spectrum of ``random_transfer``; values of 0 and less stay as they are. Takes
    (C, H, W[, D]); channels are independent, with one spectrum.
    """
    transfer = random_transfer(clean.shape[1:], generator)
    return torch.where(clean > 0, clean + sigma * _filtered(clean, transfer, generator), clean)


KINDS: dict[str, Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]] = {
    "gaussian": add_gaussian,
    "rician": add_rician,
    "poisson": add_poisson,
    "speckle": add_speckle,
    "mixed": add_mixed,
    "correlated": add_correlated,
    "correlated_rician": add_correlated_rician,
    "correlated_poisson": add_correlated_poisson,
    "clipped": add_clipped,
    "nonstationary": add_nonstationary,
    "nonstationary_rician": add_nonstationary_rician,
    "masked": add_masked,
}


def _magnitude(clean: torch.Tensor, noise: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Of a signal that is never negative, with noise in its real and in its imaginary channel."""
    real = clean.clamp(min=0) + noise()
    return torch.hypot(real, noise())


def _normal(clean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(clean.shape, generator=generator, device=generator.device, dtype=clean.dtype).to(clean.device)


def _filtered(clean: torch.Tensor, transfer: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise of variance 1 with the spectrum of a filter; periodic, so that it is the same up to the edges."""
    return _filtered_by(transfer, _normal(clean, generator))


def _filtered_by(transfer: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    axes = tuple(range(1, image.ndim))
    return torch.fft.ifftn(torch.fft.fftn(image, dim=axes) * transfer.to(image.device), dim=axes).real
