"""From which slice thickness on a volume is better denoised slice by slice.

    python benchmarks/thick_slices.py MANIFEST [--crop 96] [--thickness 1 3 4 5] [--noise gaussian:10/255 ...]

Slices of each clean volume are averaged along its last axis in groups, as a thick slice averages the tissue in it;
``--gap`` takes the first of each group instead, which is a thin slice and a gap. Then noise is added, and both shipped
models denoise the same array. ``--zero-fill 2`` interpolates noisy and clean slices to twice their pixels first, as
scanners do: the thickness in pixels doubles, what neighbouring slices have in common does not change. One line for each
thickness: PSNR of adl3d and adl2d (means over the cases) for each noise, and the difference.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from quality import checked_noise, clean_images, parse_noise

from adl_monai.bundle import load_denoiser
from adl_monai.data.degradations import Degradation, case_seed
from adl_monai.metrics import psnr
from adl_monai.stages.arrays import denoise

NOISE = ["gaussian:10/255", "gaussian:25/255", "rician:5/100", "correlated:10/255", "correlated_rician:5/100"]
SLICES = 16


def thick(clean: np.ndarray, thickness: int, gap: bool) -> np.ndarray:
    """The middle slices of a volume in groups of ``thickness``.

    Args:
        clean: (H, W, D).
        thickness: Slices of a group.
        gap: Take the first of each group, not their mean.

    Returns:
        (H, W, N), at most ``SLICES`` of them.
    """
    count = min(SLICES, clean.shape[2] // thickness)
    start = (clean.shape[2] - count * thickness) // 2
    groups = clean[:, :, start : start + count * thickness].reshape(*clean.shape[:2], count, thickness)
    return np.ascontiguousarray(groups[..., 0] if gap else groups.mean(-1))


def zero_filled(volume: np.ndarray, factor: float) -> np.ndarray:
    """Each slice of (H, W, N) interpolated by padding its discrete Fourier transform with zeros."""
    if factor == 1:
        return volume
    margins = [round(n * (factor - 1) / 2) for n in volume.shape[:2]]
    spectrum = np.fft.fftshift(np.fft.fft2(volume, axes=(0, 1)), axes=(0, 1))
    spectrum = np.pad(spectrum, [(margin, margin) for margin in margins] + [(0, 0)])
    larger = np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(0, 1)), axes=(0, 1)).real
    return np.asarray(larger * (larger.size / volume.size), dtype=np.float32)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("--split", default="test")
    parser.add_argument("--crop", type=int, default=96, help="of the first two axes")
    parser.add_argument("--thickness", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6, 8], help="in voxels")
    parser.add_argument("--gap", action="store_true")
    parser.add_argument("--zero-fill", type=float, default=1, help="factor along both axes of a slice")
    parser.add_argument("--noise", action="append", type=checked_noise)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    models = [load_denoiser(name, ensemble=1) for name in ("adl3d", "adl2d")]
    noise = options.noise or NOISE
    volumes = list(clean_images(options.manifest, options.split, None, None))
    print(f"| voxels | {' | '.join(noise)} |", "|---" * (len(noise) + 1) + "|", sep="\n", flush=True)
    for thickness in options.thickness:
        cells = []
        for spec in noise:
            kind, _, sigma = parse_noise(spec)
            found = []
            for name, volume in volumes:
                edges = [slice(max(0, (n - options.crop) // 2), (n + options.crop) // 2) for n in volume.shape[:2]]
                clean = torch.from_numpy(thick(volume[tuple(edges)], thickness, options.gap))[None]
                noisy = Degradation(kind, sigma, case_seed(options.seed, name)).apply(clean)[0].numpy()
                noisy, target = (zero_filled(image, options.zero_fill) for image in (noisy, clean[0].numpy()))
                results = [torch.from_numpy(denoise(noisy, model))[None, None] for model in models]
                found.append([float(psnr(result, torch.from_numpy(target)[None, None], 1.0)) for result in results])
            of_3d, of_2d = np.mean(found, axis=0)
            cells.append(f"{of_3d:.2f} / {of_2d:.2f} ({of_2d - of_3d:+.2f})")
        print(f"| {thickness * options.zero_fill:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
