"""How much of the contrast of dots and lines is left after denoising, by their size and their contrast to noise.

    python benchmarks/small_structures.py [--dims 2] [--model run] [--peers "NLM (dipy)" BM4D] [--contrast 5 8 15 30]

Bright squares or cubes of one to three pixels and lines of one pixel are added to a smooth background, far apart, and
white Gaussian noise to that. A cell is the mean of what is left at the pixels of a structure, above the background, as
a share of its true height: 1 is kept, 0 is gone. Peers are told the noise level.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from peers import PEERS
from scipy.ndimage import gaussian_filter

from adl_monai.bundle import load_denoiser
from adl_monai.stages.arrays import denoise

EDGE = {2: 200, 3: 72}
APART = {2: 20, 3: 12}


def structures(dims: int) -> dict[str, np.ndarray]:
    """Masks of (EDGE,) * dims: many of one kind, far from each other."""
    size, step = EDGE[dims], APART[dims]
    index = np.indices((size,) * dims)
    inner = ((index >= step) & (index < size - step)).all(axis=0)
    found = {f"{n} voxel{'s' if n > 1 else ''} wide": inner & (index % step < n).all(axis=0) for n in (1, 2, 3)}
    found["straight line"] = inner & (index[1:] % step == 0).all(axis=0)
    found["diagonal line"] = inner & ((index[0] - index[1]) % step == 0)
    if dims == 3:
        found["diagonal line"] &= (index[0] - index[2]) % step == 0
    return found


def measure(method: Callable[[np.ndarray], np.ndarray], dims: int, contrasts: Sequence[float], sigma: float) -> None:
    """Print a row for each structure."""
    rng = np.random.default_rng(0)
    field = gaussian_filter(rng.standard_normal((EDGE[dims],) * dims), 10)
    background = 0.5 + 0.1 * field / field.std()
    noise = sigma * rng.standard_normal(background.shape)
    for name, mask in structures(dims).items():
        cells = []
        for contrast in contrasts:
            noisy = (background + contrast * sigma * mask + noise).astype(np.float32)
            left = (method(noisy) - background)[mask].mean() / (contrast * sigma)
            cells.append(f"{left:.2f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, choices=(2, 3), default=3)
    parser.add_argument("--model", help="the default is the shipped model; one image of each is denoised")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--peers", nargs="*", default=[], choices=list(PEERS))
    parser.add_argument("--contrast", type=float, nargs="+", default=[5, 8, 15, 30], help="height over the noise level")
    parser.add_argument("--sigma", type=float, default=0.03, help="noise level; the background has a deviation of 0.1")
    options = parser.parse_args(arguments)
    model = options.model or f"adl{options.dims}d"
    denoiser = load_denoiser(model, ensemble=1, precision=options.precision)
    methods: dict[str, Callable[[np.ndarray], np.ndarray]] = {model: partial(denoise, model=denoiser)}
    methods |= {name: partial(PEERS[name][1], sigma=options.sigma) for name in options.peers}
    for name, method in methods.items():
        heads = [f"{contrast:g} σ" for contrast in options.contrast]
        print(f"\n| {name} | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|", sep="\n")
        measure(method, options.dims, options.contrast, options.sigma)


if __name__ == "__main__":
    main()
