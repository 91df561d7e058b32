"""Random fields whose power falls as a power of the frequency, and the structures that their level sets draw.

The sets where a smooth random field takes one value are folded sheets without an end, like a cortex or membranes; where
two fields do so at once there are curved tubes, like vessels. They cost two Fourier transforms, whatever their length.
"""

from __future__ import annotations

import math

import numpy as np


def power_law_field(
    shape: tuple[int, ...], exponent: float, rng: np.random.Generator, band: tuple[float, float] = (0.0, math.inf)
) -> np.ndarray:
    """A periodic Gaussian random field of mean 0 and standard deviation 1.

    Args:
        shape: (H, W) or (H, W, D).
        exponent: The power spectrum falls as 1/f^exponent; 0 is white, the number of axes is scale-invariant.
        rng: Source of the randomness.
        band: Lowest and highest frequency, in cycles per voxel.

    Returns:
        float32 array of ``shape``; zeros where the band holds no frequency of so small an image.
    """
    axes = [np.fft.fftfreq(length) for length in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    frequency = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))
    amplitude = np.zeros_like(frequency)
    inside = (frequency > 0) & (frequency >= band[0]) & (frequency <= band[1])
    amplitude[inside] = frequency[inside] ** (-exponent / 2)
    noise = rng.standard_normal(shape, dtype=np.float32)
    field = np.fft.irfftn(np.fft.rfftn(noise) * amplitude, s=shape, axes=tuple(range(len(shape))))
    return (field / max(float(field.std()), 1e-12)).astype(np.float32)


def clouds(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A 1/f field between smoke and sand: texture at all scales, no edges. float32 in [0, 1]."""
    field = power_law_field(shape, len(shape) + rng.uniform(-0.5, 2.0), rng)
    return np.clip(rng.uniform(0.3, 0.6) + rng.uniform(0.1, 0.25) * field, 0.0, 1.0, dtype=np.float32)


def layers(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Folded layers of random thickness and grey: the intervals between level sets of a smooth field.

    Returns:
        float32 in [0, 1], edges about a voxel wide.
    """
    field = smooth_field(shape, rng, rng.uniform(12, 60))
    slope = _gradient_size(field)
    cuts = np.sort(rng.uniform(-2.0, 2.0, rng.integers(3, 10)))
    greys = rng.uniform(0.1, 1.0, len(cuts) + 1)
    image = np.full(shape, greys[0], dtype=np.float32)
    for cut, before, after in zip(cuts, greys[:-1], greys[1:], strict=True):
        image += (after - before) * _soft_step((field - cut) / slope, rng.uniform(0.5, 2.0))
    return np.clip(image, 0.0, 1.0, out=image)


def paint_sheets(image: np.ndarray, rng: np.random.Generator) -> None:
    """Paint thin folded sheets of one grey over an image, in place: membranes, septa, bone."""
    field = smooth_field(image.shape, rng, rng.uniform(16, 64))
    distance = np.abs(field - rng.uniform(-1, 1)) / _gradient_size(field)
    cover = _soft_step(rng.uniform(0.6, 2.5) - distance, rng.uniform(0.5, 1.5))
    image += cover * (np.float32(rng.uniform(0, 1)) - image)


def paint_tubes(image: np.ndarray, rng: np.random.Generator) -> None:
    """Paint curved tubes of one grey and slowly changing width over an image, in place: vessels, ducts, fibres."""
    wavelength = rng.uniform(16, 64)
    square = np.zeros(image.shape, dtype=np.float32)
    for _ in range(image.ndim - 1):
        field = smooth_field(image.shape, rng, wavelength)
        square += (field / _gradient_size(field)) ** 2
    width = rng.uniform(0.7, 3.0) * np.exp(0.4 * smooth_field(image.shape, rng, 2 * wavelength))
    cover = _soft_step(width - np.sqrt(square), rng.uniform(0.5, 1.5))
    image += cover * (np.float32(rng.uniform(0, 1)) - image)


def blur(image: np.ndarray, sigma: float | np.ndarray) -> np.ndarray:
    """Blur by the kernel [a, 1 - 2a, a] along each axis, mirrored at the borders.

    Args:
        image: Of any number of axes.
        sigma: Standard deviation of the kernel in voxels, at most 0.9; one number, or one per axis.
    """
    for axis, width in enumerate(np.broadcast_to(np.asarray(sigma), (image.ndim,))):
        side = np.float32(width**2 / 2)
        padded = np.pad(image, [(int(i == axis), int(i == axis)) for i in range(image.ndim)], mode="edge")
        before, after = (np.take(padded, np.arange(k, k + image.shape[axis]), axis) for k in (0, 2))
        image = (1 - 2 * side) * image + side * (before + after)
    return image


def smooth_field(shape: tuple[int, ...], rng: np.random.Generator, wavelength: float) -> np.ndarray:
    """A field without detail finer than ``wavelength`` voxels, of mean 0 and standard deviation 1 (where it fits)."""
    return power_law_field(shape, len(shape) + 1, rng, (0.0, max(1 / wavelength, 1.01 / max(shape))))


def _gradient_size(field: np.ndarray) -> np.ndarray:
    """Length of the gradient, per voxel: the field divided by it is a distance near the level set 0."""
    steps = [np.gradient(field, axis=axis) for axis, length in enumerate(field.shape) if length > 1]
    return np.sqrt(sum((step**2 for step in steps), start=np.float32(1e-6)))


def _soft_step(distance: np.ndarray, width: float) -> np.ndarray:
    """0 below, 1 above, a ramp ``width`` voxels wide at 0: a partial-volume edge."""
    return np.clip(0.5 + distance / width, 0.0, 1.0)
