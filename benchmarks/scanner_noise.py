"""The figures of ``quality.py`` on noise that no model here is taught: what simulated scanners make of white noise.

    python benchmarks/scanner_noise.py MANIFEST -o results/ [--noise ct:25/255 ...] [other options of quality.py]

Training draws its noise from a family of random spectra and levels (``adl_monai/data/noise.py``). Whether a model then
copes with noise from outside is not to be seen by more of the same. Here, white noise passes through the steps that
shape it in practice, each written for this comparison alone:

- ``ct``: noise of a sinogram, back-projected plane by plane with one of scikit-image's filters.
- ``resampled_rician``: a magnitude image acquired in larger, tilted voxels, and resampled by splines.
- ``sense_rician``: a magnitude image of parallel imaging, the noise amplified towards the centre by up to 3, from a
  k-space with an elliptical support.

BM4D is told the level and the power spectrum, as the mean of 24 other draws of the same scanner has it. Volumes only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import quality
import torch
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation
from skimage.transform import iradon

from adl_monai.data.noise import KINDS

NOISE = [f"{kind}:{level}" for kind in ("ct", "resampled_rician", "sense_rician") for level in ("10/255", "25/255")]
DRAWS = 24  # to know a spectrum by
Scanner = Callable[[np.random.Generator], np.ndarray]  # gives noise of one volume


def ct(shape: Sequence[int], rng: np.random.Generator) -> Scanner:
    """Filtered back-projection of white noise, at one projection per detector element."""
    width = math.ceil(math.hypot(*shape[:2]))
    angles = np.linspace(0, 180, width, endpoint=False)
    kernel = rng.choice(["ramp", "shepp-logan", "cosine", "hann"])
    rows, columns = ((width - size) // 2 for size in shape[:2])

    def scan(rng: np.random.Generator) -> np.ndarray:
        planes = (
            iradon(rng.standard_normal((width, width)), angles, width, kernel, circle=False) for _ in range(shape[2])
        )
        return np.stack([plane[rows : rows + shape[0], columns : columns + shape[1]] for plane in planes], axis=-1)

    return scan


def resampled(shape: Sequence[int], rng: np.random.Generator) -> Scanner:
    """White noise in voxels up to 1.6 times as large, tilted by up to 20 degrees, resampled by splines of order 1 or 3.

    Its level and its correlation vary from voxel to voxel.
    """
    tilt = Rotation.from_euler("xyz", rng.uniform(-20, 20, 3), degrees=True).as_matrix()
    to_acquired = np.diag(1 / rng.uniform(1.0, 1.6, 3)) @ tilt
    order = int(rng.choice([1, 3]))
    size = math.ceil(math.sqrt(3) * max(shape)) + 8
    offset = (size - 1) / 2 - to_acquired @ ((np.array(shape) - 1) / 2)

    def scan(rng: np.random.Generator) -> np.ndarray:
        acquired = rng.standard_normal((size, size, size))
        return np.asarray(affine_transform(acquired, to_acquired, offset, tuple(shape), order=order, mode="wrap"))

    return scan


def sense(shape: Sequence[int], rng: np.random.Generator) -> Scanner:
    """White noise of an elliptical k-space of 0.6 to 1 times the size, amplified by a geometry factor of 1 to 3."""
    grids = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    centre, gain = rng.uniform(-0.3, 0.3, len(shape)), rng.uniform(0.5, 2.0)
    distance = sum((grid - place) ** 2 for grid, place in zip(grids[:2], centre, strict=False))  # coils: in the plane
    factor = 1 + gain * np.exp(-distance / 0.35)
    frequencies = np.meshgrid(*(np.fft.fftfreq(size) for size in shape), indexing="ij")
    support = sum(
        (frequency / (0.5 * part)) ** 2 for frequency, part in zip(frequencies, rng.uniform(0.6, 1.0, 3), strict=True)
    )

    def scan(rng: np.random.Generator) -> np.ndarray:
        spectrum = np.fft.fftn(rng.standard_normal(shape)) * (support <= 1)
        return np.asarray(factor * np.fft.ifftn(spectrum).real)

    return scan


SCANNERS = {"ct": ct, "resampled": resampled, "sense": sense}


def scanner(name: str, shape: Sequence[int], generator: torch.Generator) -> tuple[Scanner, np.random.Generator, float]:
    """A scanner, what its noise is drawn by, and the root mean square of its noise: all from the generator's seed."""
    make = np.random.default_rng(generator.initial_seed())
    scan = SCANNERS[name](shape, make)
    levels = [np.mean(scan(make) ** 2) for _ in range(4)]
    return scan, make, math.sqrt(np.mean(levels))


def transfer(name: str, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """The spectrum's root, mean square 1, estimated from other draws."""
    scan, rng, _ = scanner(name, shape, generator)
    others = np.random.default_rng(rng.integers(2**32) + 1)
    power = np.mean([np.abs(np.fft.fftn(scan(others))) ** 2 for _ in range(DRAWS)], axis=0)
    return torch.from_numpy(np.sqrt(power / power.mean()))


def add_noise(name: str, rician: bool) -> Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]:
    """A function like those of ``adl_monai.data.noise``."""

    def add(clean: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
        scan, rng, level = scanner(name, clean.shape[1:], generator)
        scale = sigma / level
        noisy = []
        for channel in clean.double().numpy():
            if rician:
                channel = np.hypot(np.maximum(channel, 0) + scale * scan(rng), scale * scan(rng))
            else:
                channel = channel + scale * scan(rng)
            noisy.append(torch.from_numpy(channel).float())
        return torch.stack(noisy)

    return add


def register() -> None:
    """Add the scanners to the kinds of noise, for this process."""
    KINDS["ct"] = add_noise("ct", rician=False)
    KINDS["resampled_rician"] = add_noise("resampled", rician=True)
    KINDS["sense_rician"] = add_noise("sense", rician=True)
    for name in SCANNERS:
        quality.TRANSFER[name] = partial(transfer, name)


def main() -> None:
    """As ``quality.py`` does it."""
    register()
    quality.main(NOISE)


if __name__ == "__main__":
    main()
