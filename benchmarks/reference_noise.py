"""How much noise a reference carries of its own: below that level, nobody should be judged by it.

    python benchmarks/reference_noise.py MANIFEST [--crop 64]

A denoiser that is not told the level takes the reference's own noise away too, and is marked down for it. In the
flattest parts of an image, anatomy has next to no power above 0.4 cycles per voxel, so what is there bounds the noise:
it is printed as the level that white noise of the same power density has, in % of the robust range. Noise that
neighbours share has its power at lower frequencies, so its level is higher than that; texture as fine counts as noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product

import numpy as np
from quality import OBJECT, clean_images

BLOCK = 16  # voxels along each axis
FLATTEST = 8  # blocks
LOWEST_FREQUENCY = 0.4  # cycles per voxel, radial


def high_frequency_level(image: np.ndarray) -> float:
    """The standard deviation of white noise with the mean power density of the flattest blocks' high frequencies.

    Args:
        image: (H, W) or (H, W, D), its robust range at [0, 1]; blocks darker than a tenth of that are not looked at.

    Raises:
        ValueError: If no block is bright enough or the image is smaller than one.
    """
    corners = product(*(range(0, size - BLOCK + 1, BLOCK // 2) for size in image.shape))
    blocks = [image[tuple(slice(start, start + BLOCK) for start in corner)] for corner in corners]
    blocks = [_without_slopes(block) for block in blocks if block.mean() > OBJECT]
    if not blocks:
        raise ValueError(f"no block of {BLOCK} voxels an axis in an object; given an image of shape {image.shape}.")
    flattest = sorted(blocks, key=np.std)[:FLATTEST]
    window = _product_of_axes(np.hanning(BLOCK + 2)[1:-1], image.ndim)
    window /= np.sqrt(np.mean(window**2))
    power = np.mean([np.abs(np.fft.fftn(block * window)) ** 2 for block in flattest], axis=0) / window.size
    squares = np.meshgrid(*[np.fft.fftfreq(BLOCK) ** 2] * image.ndim, indexing="ij")
    return float(np.sqrt(power[np.sqrt(sum(squares)) >= LOWEST_FREQUENCY].mean()))


def _without_slopes(block: np.ndarray) -> np.ndarray:
    """Subtract the quadratic polynomial that fits best: shading, and partial volume of a distant edge."""
    axes = [np.ones(block.size), *(grid.ravel() - BLOCK / 2 for grid in np.indices(block.shape))]
    terms = np.stack([axes[i] * axes[j] for i in range(len(axes)) for j in range(i, len(axes))], axis=1)
    fit, *_ = np.linalg.lstsq(terms, block.ravel().astype(np.float64), rcond=None)
    return np.asarray((block.ravel() - terms @ fit).reshape(block.shape))


def _product_of_axes(profile: np.ndarray, ndim: int) -> np.ndarray:
    window = np.ones(())
    for _ in range(ndim):
        window = window[..., None] * profile
    return window


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line for each reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("--split", default="test")
    parser.add_argument("--crop", type=int, help="look at the central cube of this edge only, as quality.py does")
    options = parser.parse_args(arguments)
    for name, image in clean_images(options.manifest, options.split, options.crop, None):
        print(f"{name}: {100 * high_frequency_level(image):.2f} %")


if __name__ == "__main__":
    main()
