"""Whole made-up scans: an object in the dark, tissues and vessels in it, uneven coils, the blur of a scanner."""

from __future__ import annotations

import numpy as np

from adl_monai.data.synthetic.fields import (
    blur,
    clouds,
    layers,
    paint_sheets,
    paint_tubes,
    power_law_field,
    smooth_field,
)
from adl_monai.data.synthetic.leaves import dead_leaves

DETAIL_BAND = (0.02, 0.5)  # cycles per voxel


def scan(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Layers, leaves and clouds side by side, sheets and tubes through them, seen as a scanner would see them.

    Returns:
        float32 in [0, 1]. Two in three have a dark background outside one large, smooth object.
    """
    image = tissue_mosaic(shape, rng)
    for _ in range(rng.integers(0, 3)):
        paint_sheets(image, rng)
    for _ in range(rng.integers(0, 4)):
        paint_tubes(image, rng)
    if rng.uniform() < 0.5:
        texture = power_law_field(shape, rng.uniform(0.5, len(shape)), rng, DETAIL_BAND)
        image += rng.uniform(0.005, 0.05) * texture * np.clip(smooth_field(shape, rng, 48) + 0.5, 0, 1)
    return as_scanned(image, rng)


def tissue_mosaic(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Two of the simple generators on the two sides of a folded border."""
    makers = (layers, layers, dead_leaves, dead_leaves, clouds)
    first, second = (makers[int(rng.integers(len(makers)))] for _ in range(2))
    image = first(shape, rng)
    if rng.uniform() < 0.6:
        inside = smooth_field(shape, rng, max(shape) / 2) > rng.uniform(-0.7, 0.7)
        image = np.where(inside, second(shape, rng), image)
    return image


def as_scanned(image: np.ndarray, rng: np.random.Generator, cut_out: float = 2 / 3, blurred: float = 0.9) -> np.ndarray:
    """What a scanner makes of an image.

    Args:
        image: Any range.
        rng: Draws what happens.
        cut_out: How often the background is dark. In half of all images, the brightness changes slowly.
        blurred: Standard deviation of the strongest blur, in voxels.

    Returns:
        float32 in [0, 1].
    """
    shape = image.shape
    if rng.uniform() < cut_out:
        image = image * _object_mask(shape, rng) + rng.choice([0.0, rng.uniform(0, 0.06)])
    if rng.uniform() < 0.5:
        image = image * np.exp(rng.uniform(0.05, 0.25) * smooth_field(shape, rng, max(shape)))
    image = blur(image, rng.uniform(0.0, blurred, len(shape) if rng.uniform() < 0.3 else 1))
    return np.clip(image, 0.0, 1.0, dtype=np.float32)


def _object_mask(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """1 inside a lumpy ellipsoid about as large as the image, 0 outside, a soft voxel between."""
    axes = [np.linspace(-1, 1, length) / rng.uniform(0.6, 1.1) for length in shape]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))
    lumps = 0.1 * smooth_field(shape, rng, max(shape) / 3)
    return np.clip(0.5 + (1 + lumps - radius) * min(shape) / 3, 0.0, 1.0, dtype=np.float32)
