"""Thin vessels and small spots: what a denoiser takes for noise if it has seldom seen any."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from adl_monai.data.synthetic.fields import paint_tubes, power_law_field, smooth_field
from adl_monai.data.synthetic.scan import DETAIL_BAND, as_scanned, tissue_mosaic

LENGTHS = {2: (0.01, 0.08), 3: (0.003, 0.02)}  # of all vessels together, voxels for each voxel of the image
RADII = (0.3, 1.3)  # voxels: a half is a line one voxel across
EDGES = (0.5, 1.2)  # voxels
BENDS = (0.0, 0.15)  # standard deviation of a step's kick to each component of a direction that begins with length 1
STEP = 0.5  # voxels
SPOT_WIDTHS = (0.35, 1.2)  # standard deviations, voxels
VOXELS_PER_SPOT = 4000
CONTRASTS = (0.04, 0.7)  # of the intensity range
BLURS = (0.3, 0.9)  # standard deviation of the strongest blur, voxels: of sharp images and of the others
GRAINS = (0.003, 0.02)  # standard deviation of fine texture, of the intensity range
CUTS = (0.02, 0.3)  # of the brightest voxel: what is fainter is cut away


def vessels(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Curved vessels, one to three voxels across, and spots, on a smooth background or the tissues of ``scan``.

    They are bright in seven of ten images, dark in the others. Faint ones are as frequent as strong ones, so that at
    any noise level some are close to it. A quarter has fine texture, so that not all that is faint and fine is noise.

    Returns:
        float32 in [0, 1].
    """
    if rng.uniform() < 0.5:
        image = rng.uniform(0.15, 0.6) + rng.uniform(0.02, 0.12) * smooth_field(shape, rng, rng.uniform(24, 96))
    else:
        image = tissue_mosaic(shape, rng)
    if rng.uniform() < 0.25:
        image += rng.uniform(*GRAINS) * power_law_field(shape, rng.uniform(0.5, len(shape)), rng, DETAIL_BAND)
    added = _vessels_and_spots(shape, rng)
    sign = 1 if rng.uniform() < 0.7 else -1
    image = np.clip(image + sign * added, 0.0, 1.0, dtype=np.float32)
    return as_scanned(image, rng, cut_out=0.3, blurred=float(rng.choice(BLURS)))


def angiogram(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Vessels, thin and wide, and spots, where all else was cut away.

    In two of three images, what is fainter than some level was cut away too, which leaves hard edges. Little varies in
    the dark around them, as in an image without noise or in one of counts, whatever the vessels' own noise may be.

    Returns:
        float32 in [0, 1].
    """
    image = np.zeros(shape, dtype=np.float32)
    for _ in range(rng.integers(1, 5)):
        paint_tubes(image, rng)
    image = np.maximum(image, _vessels_and_spots(shape, rng)).clip(0.0, 1.0)
    image = as_scanned(image, rng, cut_out=0.0, blurred=float(rng.choice(BLURS)))
    if rng.uniform() < 2 / 3:
        image[image < _log_uniform(CUTS, rng) * image.max()] = 0.0
    return image


def _vessels_and_spots(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """On zero: vessels, and spots in half of the draws."""
    added = np.zeros(shape, dtype=np.float32)
    length = _log_uniform(LENGTHS[len(shape)], rng) * added.size / max(shape)
    for _ in range(math.ceil(length)):
        _add_vessel(added, rng)
    if rng.uniform() < 0.5:
        for _ in range(rng.integers(1, 2 + added.size // VOXELS_PER_SPOT)):
            _add_spot(added, rng)
    return added


def _add_vessel(added: np.ndarray, rng: np.random.Generator) -> None:
    """A vessel as long as the image's longest side that bends and tapers on its way; the brighter of two stays."""
    steps = math.ceil(max(added.shape) / STEP)
    ahead = rng.standard_normal(added.ndim)
    ahead /= np.linalg.norm(ahead)
    kicks = rng.uniform(*BENDS) * rng.standard_normal((steps, added.ndim))
    turned = ahead + np.cumsum(kicks, axis=0)
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    path = np.cumsum(STEP * turned, axis=0)
    path += rng.uniform(0, added.shape) - path[rng.integers(steps)]
    radii = _log_uniform(RADII, rng) * np.linspace(1.0, rng.uniform(0.5, 1.0), steps)
    edge = rng.uniform(*EDGES)
    contrast = _log_uniform(CONTRASTS, rng)
    reach = radii.max() + edge / 2
    _add(added, path, reach, lambda distance: contrast * np.clip(0.5 + (radii[:, None] - distance) / edge, 0, 1))


def _add_spot(added: np.ndarray, rng: np.random.Generator) -> None:
    """A round spot with a soft edge; the brighter of two stays."""
    width, contrast = rng.uniform(*SPOT_WIDTHS), _log_uniform(CONTRASTS, rng)
    centre = rng.uniform(0, added.shape)[None]
    _add(added, centre, 3.5 * width, lambda distance: contrast * np.exp(-(distance**2) / (2 * width**2)))


def _add(added: np.ndarray, points: np.ndarray, reach: float, height: Callable[[np.ndarray], np.ndarray]) -> None:
    """Raise the voxels around points, (N, axes), to the height at their distances, (N, voxels), where it is above."""
    sides = np.arange(-math.ceil(reach), math.ceil(reach) + 1)
    near = np.stack(np.meshgrid(*[sides] * added.ndim, indexing="ij"), axis=-1).reshape(-1, added.ndim)
    voxels = np.rint(points).astype(int)[:, None] + near
    heights = height(np.linalg.norm(voxels - points[:, None], axis=-1))
    inside = ((voxels >= 0) & (voxels < added.shape)).all(axis=-1) & (heights > 0)
    np.maximum.at(added, tuple(voxels[inside].T), heights[inside].astype(np.float32))


def _log_uniform(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(*np.log(bounds))))
