"""Crops of real photographs, for what no formula draws: faces, fur, cloth, grass, brick, machines.

They are the photographs inside scikit-image's wheel that its documentation states to be CC0 or in the public domain and
that are clean at the scales used here. Left out are grainy ones (the Hubble deep field, the clock, the text), blocky or
banded ones (moon, coins, cell) and those without a stated licence (page, motorcycle, stained tissue). scikit-image is
needed for training only: it is in the extra ``adl_monai[train]``.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adl_monai.errors import UsageError

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
SMALLEST_FACTOR = 0.4


class Photograph(NamedTuple):
    """A file of scikit-image, the largest factor it is shrunk by, and its share of the crops."""

    file: str
    largest_factor: float
    weight: float


# A JPEG is always shrunk, so that its blocks and noise average out.
PHOTOGRAPHS = (
    Photograph("astronaut.png", 1.0, 3),  # NASA, public domain
    Photograph("camera.png", 1.0, 3),  # L. Varshney, CC0
    Photograph("chelsea.png", 1.0, 3),  # S. van der Walt, CC0
    Photograph("coffee.png", 1.0, 3),  # R. Michetti, CC0
    Photograph("brick.png", 1.0, 2),  # CC0Textures, CC0
    Photograph("grass.png", 1.0, 2),  # linolafett, CC0
    Photograph("gravel.png", 1.0, 2),  # CC0Textures, CC0
    Photograph("retina.jpg", 0.7, 1),  # M. Häggström, CC0
    Photograph("rocket.jpg", 0.7, 1),  # SpaceX, public domain
)


def photo(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A random crop of a photograph, shrunk, turned, mirrored and of random tone.

    Args:
        shape: (H, W); what is larger than the shrunk photograph is filled with its mirror image.
        rng: Source of the randomness.

    Returns:
        float32 in [0, 1].

    Raises:
        UsageError: For three axes, or if scikit-image or one of its photographs is not installed.
    """
    if len(shape) != 2:
        given = "x".join(map(str, shape))
        raise UsageError(f"synthetic kind 'photo' has images only, shape {given} given; expected HxW, or another kind.")
    weights = np.array([photograph.weight for photograph in PHOTOGRAPHS])
    chosen = PHOTOGRAPHS[int(rng.choice(len(PHOTOGRAPHS), p=weights / weights.sum()))]
    pixels = _pixels(chosen.file)
    if rng.uniform() < 0.5:
        pixels = pixels.swapaxes(0, 1)
    # A little more in one direction than in the other, so that the few photographs give more shapes.
    stretch = rng.uniform(-0.1, 0.1)
    factors = rng.uniform(SMALLEST_FACTOR, chosen.largest_factor) * np.exp([stretch, -stretch])
    factors = np.minimum(factors, chosen.largest_factor)

    # The part of the photograph that the crop shows, at the photograph's own scale.
    window, size = [], []
    for wanted, full, factor in zip(shape, pixels.shape, factors, strict=False):
        length = min(full, max(1, round(wanted / factor)))
        start = int(rng.integers(0, full - length + 1))
        window.append(slice(start, start + length))
        size.append(min(wanted, max(1, round(length * factor))))
    image = _shrink(_grey(pixels[tuple(window)], rng), (size[0], size[1]))
    image = np.pad(image, [(0, wanted - have) for wanted, have in zip(shape, size, strict=True)], mode="symmetric")
    for axis in range(2):
        if rng.uniform() < 0.5:
            image = np.flip(image, axis)

    # Contrast is only ever lowered: raised, it would raise what noise the photograph has.
    image = np.clip(image / 255, 0.0, 1.0) ** rng.uniform(0.75, 1.3)
    contrast = rng.uniform(0.7, 1.0)
    return np.ascontiguousarray(contrast * image + rng.uniform(0, 1 - contrast), dtype=np.float32)


def _grey(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colour (H, W, 3) to grey by luminance or a random mixture of the channels near it; grey as it is."""
    if pixels.ndim == 2:
        return pixels.astype(np.float32)
    # Around the luminance, since blue alone is the channel with the most noise.
    mixture = LUMA if rng.uniform() < 0.5 else rng.dirichlet(5 * LUMA)
    return pixels @ mixture.astype(np.float32)


def _shrink(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Antialiased (bicubic) to ``size`` rows and columns."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))


@lru_cache(maxsize=len(PHOTOGRAPHS))
def _pixels(file: str) -> np.ndarray:
    """uint8, (H, W) or (H, W, 3)."""
    from PIL import Image

    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise UsageError(
            "synthetic kind 'photo' needs the photographs inside scikit-image: pip install scikit-image, or use "
            "another kind."
        )
    path = Path(package.origin).parent / "data" / file
    if not path.is_file():
        raise UsageError(
            f"synthetic kind 'photo': the installed scikit-image has no photograph {file}; expected it as in "
            "scikit-image 0.24 to 0.26: pip install 'scikit-image<0.27', or use another kind."
        )
    with Image.open(path) as image:
        return np.asarray(image)
