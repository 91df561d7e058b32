"""Noisy and clean scans of a pair that share a grid, but not what their numbers mean."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

logger = logging.getLogger(__name__)

GAINS = (0.5, 2.0)  # of noisy on clean; noise alone, Rician too, stays well inside
LARGEST_OFFSET = 0.5  # of the clean scan's range; Rician noise lifts by less
ROUGHER = 1.2  # of two scans of one subject, the one with more noise varies more between neighbours


@dataclass(frozen=True)
class PairIntensities:
    """How a pair's two scans go together: ``noisy`` is about ``gain * clean + offset``."""

    name: str
    gain: float
    offset: float
    far_apart: bool
    """No noise explains such a gain or offset."""
    swapped: bool
    """The clean scan varies more from voxel to voxel than the noisy one, each by its own contrast."""


def compare_pair(name: str, noisy: np.ndarray, clean: np.ndarray) -> PairIntensities | None:
    """Compare two scans of one shape; None where one of them is constant.

    The noisy scan is fitted to the clean one, not the other way round: noise in what is fitted moves no slope.
    """
    noisy, clean = noisy.astype(np.float64), clean.astype(np.float64)
    spread, noisy_spread = clean.std(), noisy.std()
    if not (spread > 0 and noisy_spread > 0):
        return None
    gain = float(((noisy - noisy.mean()) * (clean - clean.mean())).mean() / spread**2)
    offset = float(noisy.mean() - gain * clean.mean())
    low, high = np.percentile(clean, (0.5, 99.5))
    shifted = abs(offset + (gain - 1) * low) > LARGEST_OFFSET * max(high - low, spread)
    swapped = _roughness(clean) / spread > ROUGHER * _roughness(noisy) / noisy_spread
    return PairIntensities(name, gain, offset, not GAINS[0] <= gain <= GAINS[1] or shifted, swapped)


def warn_of_pairs(pairs: Sequence[PairIntensities]) -> None:
    """Warn, once, of pairs from which a network would learn something else than denoising.

    Swapped scans have an odd slope too, so of these two faults only one is told.
    """
    if swapped := [pair for pair in pairs if pair.swapped]:
        logger.warning(
            "in %d of %d pairs the clean scan looks noisier than the noisy one, such as %s. In a manifest, image is "
            "the noisy scan and label the clean one; for prepare, check that --noisy and --clean are not swapped.",
            len(swapped),
            len(pairs),
            swapped[0].name,
        )
    elif apart := [pair for pair in pairs if pair.far_apart]:
        worst = apart[0]
        logger.warning(
            "in %d of %d pairs the two scans do not have the same intensities, such as %s, which is about %.3g times "
            "its clean scan %s %.3g. A network would learn that change, and PSNR counts it as noise. Bring both scans "
            "to one unit, or check that they show one subject in one position.",
            len(apart),
            len(pairs),
            worst.name,
            worst.gain,
            "minus" if worst.offset < 0 else "plus",
            abs(worst.offset),
        )


def _roughness(image: np.ndarray) -> float:
    """Root mean square of the differences of differences along two axes: noise has more of them than edges do."""
    mixed = np.diff(np.diff(image, axis=0), axis=1)
    return float(np.sqrt(np.square(mixed).mean())) if mixed.size else 0.0
