"""What becomes of counts, PET and CT on phantoms: their means, and the noise that is left in them.

    python benchmarks/phantoms.py [--model adl3d] [--ensemble 2]

Where noise has a mean, the models take that for the floor of magnitude MRI and remove it; ``--noise-floor keep`` gives
local means back. Each phantom is measured as it is ("noisy") and denoised with the floor removed and with means kept:

- SPECT: Poisson counts of a body, 1, 1.5, 2 or 3 a voxel, nothing around it: their sum, as a share of the true one.
- PET: Poisson counts of the body, 1 or 10 a voxel, smoothed (standard deviation 0.8 voxels): their sum, as a share of
  the true one, and their standard deviation inside the body, as a share of their mean.
- CT: a chest with lungs of -950 HU, noise of 20, 60 or 150 HU, white or shared by neighbours, clipped at -1024 HU: the
  standard deviation in the soft tissue, and for white noise of 60 HU the mean of the lungs.
- A flat block in noise of a tenth of its height, white or shared: the standard deviation in it.
- Four lesions of 3³ voxels, three times as hot as the body (20 counts): their sum above the body, and their peaks (mean
  of the highest voxels), as shares of the true ones.
- Uniform noise from 0 to 1 with nothing behind it: its mean.
- Poisson counts that fill the whole image, 1, 1.5, 2 or 3 a voxel: their sum, as a share of the true one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from scipy.ndimage import gaussian_filter, label

from adl_monai.bundle import load_denoiser
from adl_monai.stages.arrays import denoise

SHAPE = (64, 64, 32)
X, Y, Z = np.meshgrid(*(np.arange(size) - (size - 1) / 2 for size in SHAPE), indexing="ij")
BODY = (X / 24) ** 2 + (Y / 20) ** 2 < 1
INSIDE = (X / 20) ** 2 + (Y / 16) ** 2 < 1
LUNGS = ((abs(X) - 13) / 9) ** 2 + (Y / 14) ** 2 < 1
INSIDE_LUNGS = ((abs(X) - 13) / 7) ** 2 + (Y / 12) ** 2 < 1
CHEST = (X / 29) ** 2 + (Y / 24) ** 2 < 1
TISSUE = ((X / 27) ** 2 + (Y / 22) ** 2 < 1) & (((abs(X) - 13) / 11) ** 2 + (Y / 16) ** 2 > 1)
LESIONS, NEAR = (
    (abs(abs(X) - 10.5) < reach) & (abs(Y - 0.5) < reach) & (abs(abs(Z) - 6.5) < reach) for reach in (2, 4)
)

Phantom = tuple[str, np.ndarray, Callable[[np.ndarray], float]]


def shared(noise: np.ndarray) -> np.ndarray:
    """White noise as neighbours share it, with a standard deviation of 1."""
    smooth = gaussian_filter(noise, 0.8)
    return np.asarray(smooth / smooth.std())


def phantoms(seed: int = 0) -> list[Phantom]:
    """What is measured, the noisy image, and how."""
    rng = np.random.default_rng(seed)
    found: list[Phantom] = []
    for level in (1.0, 1.5, 2.0, 3.0):
        true = level * BODY.sum()
        found.append((f"SPECT, {level:g} a voxel: sum", rng.poisson(level * BODY), lambda x, true=true: x.sum() / true))
    for level in (1.0, 10.0):
        pet, true = gaussian_filter(rng.poisson(level * BODY).astype(float), 0.8), level * BODY.sum()
        name = f"PET, {level:g} count{'s' if level > 1 else ''} a voxel"
        found.append((f"{name}: sum", pet, lambda x, true=true: x.sum() / true))
        found.append((f"{name}: deviation", pet, lambda x: x[INSIDE].std() / x[INSIDE].mean()))
    kinds = {"white": np.asarray, "shared": shared}
    for level, (name, kind) in product((20, 60, 150), kinds.items()):
        chest = np.select([LUNGS, CHEST], [-950.0, 40.0], -1000.0) + level * kind(rng.standard_normal(SHAPE))
        chest = np.rint(np.clip(chest, -1024, 3071))
        found.append((f"CT, {name} noise of {level} HU: deviation", chest, lambda x: x[TISSUE].std()))
        if (level, name) == (60, "white"):
            found.append(("CT, lungs of -950 HU: mean", chest, lambda x: x[INSIDE_LUNGS].mean()))
    for name, kind in kinds.items():
        block = 10.0 * BODY + kind(rng.standard_normal(SHAPE))
        found.append((f"flat block, {name} noise of 1: deviation", block, lambda x: x[INSIDE].std()))
    counts = rng.poisson(20.0 * (BODY + 2 * LESIONS))
    found.append(("lesions: sum", counts, lambda x: (x - 20 * BODY)[NEAR].sum() / (40 * LESIONS.sum())))
    found.append(("lesions: peaks", counts, lambda x: np.mean([x[one].max() for one in _separate(LESIONS)]) / 60))
    found.append(("uniform noise alone: mean", rng.uniform(size=(48, 48, 48)), np.mean))
    for level in (1.0, 1.5, 2.0, 3.0):
        counts = rng.poisson(level, SHAPE)
        found.append((f"nothing but counts, {level:g} a voxel: sum", counts, lambda x, level=level: x.mean() / level))
    return found


def _separate(mask: np.ndarray) -> list[np.ndarray]:
    labels, count = label(mask)
    return [labels == number for number in range(1, count + 1)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="adl3d")
    parser.add_argument("--ensemble", type=int, default=2, help="mirror images")
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args(arguments)
    model = load_denoiser(options.model, ensemble=options.ensemble, precision=options.precision)
    print("| phantom | noisy | floor removed | means kept |", "|---|---|---|---|", sep="\n", flush=True)
    for name, image, measure in phantoms():
        noisy = image.astype(np.float32)
        results = (denoise(noisy, model, noise_floor=floor).astype(np.float64) for floor in ("remove", "keep"))
        cells = [f"{measure(result):.4g}" for result in (noisy.astype(np.float64), *results)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
