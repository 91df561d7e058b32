"""Dead leaves with rich insides: stripes, weaves and checks, grain, fur and pebbles of all finenesses.

After VibrantLeaves (Achddou, Gousseau, Ladjal and Süsstrunk, arXiv 2504.10201). Plain dead leaves teach a denoiser
edges and flat regions; it then takes the fine texture of photographs for noise.
"""

from __future__ import annotations

import math

import numpy as np

from adl_monai.data.synthetic.fields import blur, smooth_field
from adl_monai.data.synthetic.leaves import Leaf, cut_from_tile, place_leaf, power_law_radius

MAX_LEAVES = 5_000
TILES = 4
TILE_2D, TILE_3D = 128, 48
SHORTEST_WAVE, LONGEST_WAVE = 2.5, 16.0  # voxels
FOLD = 40.0  # voxels: stripes bend over no shorter a distance


def textures(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Paint textured leaf over textured leaf, the first over all of the image.

    Args:
        shape: (H, W) or (H, W, D).
        rng: Source of the randomness.

    Returns:
        float32 in [0, 1].
    """
    tiles = [texture_tile(shape, rng) for _ in range(TILES)]
    folds = smooth_field(shape, rng, FOLD)
    whole = Leaf(
        box=tuple(slice(0, length) for length in shape),
        offsets=[np.arange(length, dtype=np.float32).reshape(_along(axis, shape)) for axis, length in enumerate(shape)],
        own=[np.linspace(-1, 1, length, dtype=np.float32).reshape(_along(i, shape)) for i, length in enumerate(shape)],
        cover=np.ones((1,) * len(shape), dtype=np.float32),
    )
    image = np.broadcast_to(_fill(whole, tiles, folds, rng), shape).astype(np.float32)
    smallest = math.exp(rng.uniform(math.log(3), math.log(16)))
    largest = max(2 * smallest, max(shape) / 2.5)
    still_to_paint = rng.uniform(1.0, 2.5) * math.prod(shape)
    for _ in range(MAX_LEAVES):
        leaf = _random_leaf(shape, power_law_radius(smallest, largest, rng), rng)
        if leaf is not None:
            image[leaf.box] += leaf.cover * (_fill(leaf, tiles, folds, rng) - image[leaf.box])
            still_to_paint -= float(leaf.cover.sum())
        if still_to_paint <= 0:
            break
    if rng.uniform() < 0.5:
        image = blur(image, rng.uniform(0.2, 0.6))
    return np.clip(image, 0.0, 1.0, dtype=np.float32)


def wave(phase: np.ndarray, sharpness: float, offset: float) -> np.ndarray:
    """A wave of period 2π in [-1, 1]: a sine at sharpness 1, nearly a square wave at 10.

    Args:
        phase: In radians.
        sharpness: >= 1; the edges take 1/(π·sharpness) of the period.
        offset: In [-1, 1]: how much of the period is high; 0 is half of it.
    """
    return np.clip(sharpness * (np.sin(phase) + offset), -1.0, 1.0)


def _random_leaf(shape: tuple[int, ...], radius: float, rng: np.random.Generator) -> Leaf | None:
    """A superellipsoid between a rhombus and nearly a box, its corners in any direction."""
    dims = len(shape)
    rotation, _ = np.linalg.qr(rng.normal(size=(dims, dims)))
    order = rng.choice([1.0, 2.0, math.inf, rng.uniform(1.2, 6.0)])
    semi_axes = radius * np.exp(rng.uniform(-0.5, 0.5, dims))
    return place_leaf(shape, rng.uniform(0, shape), semi_axes, rotation, rng.uniform(0.7, 2.0), order)


def _fill(leaf: Leaf, tiles: list[np.ndarray], folds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Greys for the box of a leaf: a level, a slow shade and a pattern of random contrast."""
    contrast = math.exp(rng.uniform(math.log(0.02), math.log(0.4)))
    level = rng.uniform(0.03 + 0.7 * contrast, 0.97 - 0.7 * contrast)
    shade = rng.uniform(-0.15, 0.15) if rng.uniform() < 0.5 else 0.0
    base = np.float32(level) + np.float32(shade) * np.clip(leaf.own[0], -1, 1)
    pattern = rng.choice(["flat", "stripes", "weave", "tile"], p=[0.2, 0.25, 0.2, 0.35])
    if pattern == "flat":
        return base
    if pattern == "tile":
        tile = tiles[int(rng.integers(len(tiles)))]
        return base + np.float32(contrast) * cut_from_tile(tile, leaf.box)
    bend = folds[leaf.box] if rng.uniform() < 0.6 else None
    dims = len(leaf.box)
    first, second = np.linalg.qr(rng.normal(size=(dims, dims)))[0][:2]
    lines = stripes(leaf.offsets, first, bend, rng)
    if pattern == "weave":
        if rng.uniform() < 0.5:
            second = second + rng.uniform(-1, 1) * first
        lines = _weave(lines, stripes(leaf.offsets, second / np.linalg.norm(second), bend, rng), rng)
    return base + np.float32(contrast) * lines


def stripes(
    offsets: list[np.ndarray], direction: np.ndarray, bend: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """Parallel stripes of random fineness, between sine and square.

    Args:
        offsets: Coordinates in voxels, one open-grid array per axis.
        direction: Unit vector across the stripes.
        bend: A field of standard deviation 1 that moves the stripes as folds move those of a cloth; None: straight.
        rng: Source of the randomness.

    Returns:
        float32 in [-1, 1], of a wavelength between 2.5 and 16 voxels.
    """
    length = math.exp(rng.uniform(math.log(SHORTEST_WAVE), math.log(LONGEST_WAVE)))
    phase: np.ndarray = np.full((1,) * len(direction), rng.uniform(0, 2 * math.pi), dtype=np.float32)
    for part, offset in zip(direction, offsets, strict=True):
        phase = phase + np.float32(2 * math.pi / length * part) * offset.astype(np.float32)
    if bend is not None:
        # By a share of the wavelength: fine stripes are bent less, else some would get too fine for the voxels.
        phase = phase + np.float32(2 * math.pi * rng.uniform(-0.4, 0.4)) * bend
    # An edge takes a voxel at least: a sharper one would alias.
    sharpness = rng.uniform(1.0, max(1.0, length / math.pi))
    return wave(phase, sharpness, rng.uniform(-0.6, 0.6) if sharpness > 1.2 else 0.0)


def _weave(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two sets of stripes as checks (product), a grid (the higher), or a plaid (mean); in [-1, 1]."""
    match int(rng.integers(3)):
        case 0:
            return first * second
        case 1:
            return np.maximum(first, second)
        case _:
            return (first + second) / 2


def texture_tile(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A periodic tile of 1/f noise of random exponent and direction, bent to ridges, pebbles or sparks.

    Args:
        shape: Of the image, (H, W) or (H, W, D); the tile is no larger.
        rng: Source of the randomness.

    Returns:
        float32 of mean 0 and standard deviation 1/2, what exceeds ±1.5 cut off.
    """
    dims = len(shape)
    tile = tuple(min(length, TILE_2D if dims == 2 else TILE_3D) for length in shape)
    axes = np.meshgrid(*[np.fft.fftfreq(n) for n in tile[:-1]], np.fft.rfftfreq(tile[-1]), indexing="ij", sparse=True)
    # Frequencies weigh more along one or two axes of a random frame: fur, hair, wood.
    rotation, _ = np.linalg.qr(rng.normal(size=(dims, dims)))
    stretch = np.exp(rng.uniform(0, 2.0, dims)) if rng.uniform() < 0.5 else np.ones(dims)
    stretch = stretch / stretch.min()
    turned = [sum(axes[i] * rotation[i, k] for i in range(dims)) * stretch[k] for k in range(dims)]
    frequency = np.sqrt(sum(part**2 for part in turned))
    lowest = rng.choice([1 / 64, 1 / 24, 1 / 10])
    # Below the lowest frequency the power is flat, and it fades near the finest, where it would be noise.
    amplitude = np.maximum(frequency, lowest) ** (-(rng.uniform(1.5, 3.0) + dims - 2) / 2)
    amplitude = amplitude / (1 + (sum(axis**2 for axis in axes) / 0.3**2) ** 4)
    amplitude.flat[0] = 0
    spectrum = amplitude * np.fft.rfftn(rng.standard_normal(tile, dtype=np.float32))
    noise = np.fft.irfftn(spectrum, s=tile, axes=tuple(range(dims)))
    noise /= max(float(noise.std()), 1e-12)
    match int(rng.integers(4)):
        case 0:
            noise = np.abs(noise)
        case 1:
            noise = np.tanh(2 * noise)
        case 2:
            noise = np.exp(0.7 * noise)
    noise -= noise.mean()
    return np.clip(noise / max(2 * float(noise.std()), 1e-12), -1.5, 1.5).astype(np.float32)


def _along(axis: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-1 if i == axis else 1 for i in range(len(shape)))
