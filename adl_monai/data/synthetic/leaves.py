"""Dead leaves: objects of power-law size that occlude one another.

They have the edges, flat regions and scale invariance of natural images (Lee, Mumford and Huang, IJCV 41:35, 2001), and
denoisers trained on them carry over to photographs (Achddou, Gousseau and Ladjal, SSVM 2021). Here the leaves are
ellipsoids and boxes on a dark background, flat, shaded or textured inside.
"""

from __future__ import annotations

import math

import numpy as np

MAX_LEAVES = 20_000
SMALLEST_RADIUS = 1.5
TEXTURE_TILE = 64


def dead_leaves(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Paint leaf over leaf until their volumes add up to about that of the image; some background stays in sight.

    Radii follow r^-3 between 1.5 voxels and a third of the longest side, the law that makes an image of leaves
    scale-invariant.
    """
    image = np.full(shape, rng.uniform(0.0, 0.08), dtype=np.float32)
    texture = _power_law_texture(shape, rng)
    largest = max(2 * SMALLEST_RADIUS, max(shape) / 3)
    still_to_paint = rng.uniform(0.7, 1.5) * math.prod(shape)
    for _ in range(MAX_LEAVES):
        # The inverse of the law's distribution function, at a uniform number.
        share = rng.uniform()
        radius = ((1 - share) * SMALLEST_RADIUS**-2 + share * largest**-2) ** -0.5
        still_to_paint -= _paint_leaf(image, texture, radius, rng)
        if still_to_paint <= 0:
            break
    return np.clip(image, 0.0, 1.0, out=image)


def _paint_leaf(image: np.ndarray, texture: np.ndarray, radius: float, rng: np.random.Generator) -> float:
    """Paint one leaf over the image, inside its bounding box; return its volume in voxels."""
    dims = image.ndim
    centre = rng.uniform(0, image.shape)
    semi_axes = radius * rng.uniform(0.6, 1.4, dims)
    rotation, _ = np.linalg.qr(rng.normal(size=(dims, dims)))
    is_box = rng.uniform() < 0.5
    edge_width = rng.uniform(0.5, 2.0)
    level, contrast, interior = rng.uniform(0.15, 0.95), rng.uniform(0.03, 0.15), rng.integers(3)

    grown = semi_axes * (1 + 0.5 * edge_width / semi_axes.min())
    reach = np.abs(rotation * grown).sum(axis=1) if is_box else np.sqrt(((rotation * grown) ** 2).sum(axis=1))
    start = np.maximum(np.floor(centre - reach), 0).astype(int)
    stop = np.minimum(np.ceil(centre + reach) + 1, image.shape).astype(int)
    if (stop > start).all():
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        offsets = [axis - c for axis, c in zip(np.ogrid[box], centre, strict=True)]
        # Coordinates along the leaf's own axes, in units of its semi-axes.
        own = [sum(offsets[i] * rotation[i, k] for i in range(dims)) / semi_axes[k] for k in range(dims)]
        distance = np.maximum.reduce([np.abs(u) for u in own]) if is_box else np.sqrt(sum(u * u for u in own))
        cover = np.clip(0.5 + (1 - distance) * semi_axes.min() / edge_width, 0, 1)
        fill: np.ndarray | float = level
        if interior == 1:
            fill = level + contrast * np.clip(own[0], -1, 1)
        elif interior == 2:
            wrapped = np.ix_(*(np.arange(a, b) % n for a, b, n in zip(start, stop, texture.shape, strict=True)))
            fill = level + contrast * texture[wrapped]
        image[box] += cover * (fill - image[box])
    return float(np.prod(2 * semi_axes)) * (1.0 if is_box else (math.pi / 4 if dims == 2 else math.pi / 6))


def _power_law_texture(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A periodic tile of noise whose power falls as 1/f^d, of mean 0 and standard deviation 1/2."""
    tile = tuple(min(length, TEXTURE_TILE) for length in shape)
    frequency = np.sqrt(sum(axis**2 for axis in np.meshgrid(*map(np.fft.fftfreq, tile), indexing="ij", sparse=True)))
    frequency.flat[0] = np.inf
    spectrum = np.fft.fftn(rng.normal(size=tile)) * frequency ** (-len(tile) / 2)
    texture = np.fft.ifftn(spectrum).real
    return texture / max(2 * float(texture.std()), np.finfo(float).tiny)
