"""Dead leaves: objects of power-law size that occlude one another.

They have the edges, flat regions and scale invariance of natural images (Lee, Mumford and Huang, IJCV 41:35, 2001), and
denoisers trained on them carry over to photographs (Achddou, Gousseau and Ladjal, SSVM 2021). Here the leaves are
ellipsoids and boxes on a dark background, flat, shaded or textured inside.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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
        radius = power_law_radius(SMALLEST_RADIUS, largest, rng)
        still_to_paint -= _paint_leaf(image, texture, radius, rng)
        if still_to_paint <= 0:
            break
    return np.clip(image, 0.0, 1.0, out=image)


class Leaf(NamedTuple):
    """The part of an image that one leaf may cover."""

    box: tuple[slice, ...]  # its bounding box in the image
    offsets: list[np.ndarray]  # voxels from its centre, one open-grid array per axis of the image
    own: list[np.ndarray]  # coordinates along its own axes, in units of its semi-axes
    cover: np.ndarray  # 0 outside, 1 inside, a ramp between


def power_law_radius(smallest: float, largest: float, rng: np.random.Generator) -> float:
    """A radius in voxels from the law r^-3: the inverse of its distribution function, at a uniform number."""
    share = rng.uniform()
    return float(((1 - share) * smallest**-2 + share * largest**-2) ** -0.5)


def place_leaf(
    shape: tuple[int, ...],
    centre: np.ndarray,
    semi_axes: np.ndarray,
    rotation: np.ndarray,
    edge_width: float,
    order: float,
) -> Leaf | None:
    """A superellipsoid: the voxels within 1 of its centre in the ``order``-norm of its own coordinates.

    Args:
        shape: Of the image, (H, W) or (H, W, D).
        centre: In voxels.
        semi_axes: In voxels.
        rotation: Orthogonal, its columns the leaf's own axes.
        edge_width: Of the soft edge, in voxels.
        order: >= 1: 1 is a rhombus, 2 an ellipsoid, infinity a box.

    Returns:
        None where the leaf lies outside the image.
    """
    dims = len(shape)
    grown = semi_axes * (1 + 0.5 * edge_width / semi_axes.min())
    # The farthest point along an axis of the image is given by the dual norm.
    dual = math.inf if order == 1 else 1 / (1 - 1 / order)
    reach = _norm(list(np.abs(rotation * grown).T), dual)
    start = np.maximum(np.floor(centre - reach), 0).astype(int)
    stop = np.minimum(np.ceil(centre + reach) + 1, shape).astype(int)
    if not (stop > start).all():
        return None
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    offsets = [axis - c for axis, c in zip(np.ogrid[box], centre, strict=True)]
    own = [sum(offsets[i] * rotation[i, k] for i in range(dims)) / semi_axes[k] for k in range(dims)]
    cover = np.clip(0.5 + (1 - _norm(own, order)) * semi_axes.min() / edge_width, 0, 1)
    return Leaf(box, offsets, own, cover)


def cut_from_tile(tile: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
    """What a periodic tile holds in a box of the image that it is laid out over."""
    return tile[np.ix_(*(np.arange(side.start, side.stop) % n for side, n in zip(box, tile.shape, strict=True)))]


def _norm(parts: list[np.ndarray], order: float) -> np.ndarray:
    if order == math.inf:
        return np.maximum.reduce([np.abs(part) for part in parts])
    if order == 2:
        return np.sqrt(sum(part * part for part in parts))
    return sum(np.abs(part) ** order for part in parts) ** (1 / order)


def _paint_leaf(image: np.ndarray, texture: np.ndarray, radius: float, rng: np.random.Generator) -> float:
    """Paint one leaf over the image, inside its bounding box; return its volume in voxels."""
    dims = image.ndim
    centre = rng.uniform(0, image.shape)
    semi_axes = radius * rng.uniform(0.6, 1.4, dims)
    rotation, _ = np.linalg.qr(rng.normal(size=(dims, dims)))
    is_box = rng.uniform() < 0.5
    edge_width = rng.uniform(0.5, 2.0)
    level, contrast, interior = rng.uniform(0.15, 0.95), rng.uniform(0.03, 0.15), rng.integers(3)

    leaf = place_leaf(image.shape, centre, semi_axes, rotation, edge_width, math.inf if is_box else 2)
    if leaf is not None:
        fill: np.ndarray | float = level
        if interior == 1:
            fill = level + contrast * np.clip(leaf.own[0], -1, 1)
        elif interior == 2:
            fill = level + contrast * cut_from_tile(texture, leaf.box)
        image[leaf.box] += leaf.cover * (fill - image[leaf.box])
    return float(np.prod(2 * semi_axes)) * (1.0 if is_box else (math.pi / 4 if dims == 2 else math.pi / 6))


def _power_law_texture(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A periodic tile of noise whose power falls as 1/f^d, of mean 0 and standard deviation 1/2."""
    tile = tuple(min(length, TEXTURE_TILE) for length in shape)
    frequency = np.sqrt(sum(axis**2 for axis in np.meshgrid(*map(np.fft.fftfreq, tile), indexing="ij", sparse=True)))
    frequency.flat[0] = np.inf
    spectrum = np.fft.fftn(rng.normal(size=tile)) * frequency ** (-len(tile) / 2)
    texture = np.fft.ifftn(spectrum).real
    return texture / max(2 * float(texture.std()), np.finfo(float).tiny)
