"""How well and how fast a model denoises beside the tools people use: one run, every figure from the same images.

    python benchmarks/quality.py MANIFEST -o results/ [--crop 72] [--noise gaussian:25/255 --noise rician:0.05] ...

Each clean image of a split gets noise of each kind and level, fixed by the seed. Every method gets the same noisy
array. BM3D, BM4D and NLM are told the true noise level, which the model is not; BM3D and BM4D are told the true power
spectrum where the noise is not white. Classical methods see Rician noise as Gaussian, so their results are unbiased
afterwards by the inverse of the Rician mean, again with the true level.

Writes quality.json (every figure), quality.md (means per level) and quality.png (PSNR over the level).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import PEERS, TAKE_SPECTRUM, Method, without_rician_bias
from scipy.ndimage import maximum_filter

from adl_monai.bundle import load_denoiser
from adl_monai.data.degradations import Degradation, case_seed
from adl_monai.data.monai_io import VolumeReader
from adl_monai.data.noise_field import correlating_filter, random_transfer
from adl_monai.data.normalization import normalize, robust_range
from adl_monai.errors import UsageError
from adl_monai.inferers.ensemble import MIRROR_IMAGES
from adl_monai.losses.pyramid import detail_planes
from adl_monai.manifest import load_cases
from adl_monai.metrics import psnr, ssim
from adl_monai.stages.arrays import denoise

GAUSSIAN = [f"gaussian:{level}/255" for level in (10, 15, 25, 35, 50)]
RICIAN = [f"rician:{level}/100" for level in (1, 3, 5, 7, 9)]
FLAT_GRADIENT = 0.01  # of the range, per voxel
TRANSFER: dict[str, Callable[[Sequence[int], torch.Generator], torch.Tensor]] = {
    "correlated": correlating_filter,
    "nonstationary": random_transfer,
}
OBJECT = 0.1  # flat regions are judged where the clean image is brighter than this


def figures(denoised: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    """PSNR, SSIM (data range 1), bias in flat regions; energy of the finest detail plane as a share of the clean."""
    a, b = (torch.from_numpy(image.astype(np.float32))[None, None] for image in (denoised, clean))
    steps = np.sqrt(sum(step**2 for step in np.gradient(clean)))
    flat = (maximum_filter(steps, 3) < FLAT_GRADIENT) & (clean > OBJECT)  # flat all around: no peak, no saddle
    energies = [[float((plane**2).mean()) for plane in detail_planes(image, 2)] for image in (a, b)]
    return {
        "psnr": float(psnr(a, b, 1.0)),
        "ssim": float(ssim(a, b, 1.0)),
        "flat_bias": float((denoised - clean)[flat].mean()) if flat.any() else float("nan"),
        "texture": energies[0][0] / energies[1][0],
    }


def clean_images(manifest: str, split: str, crop: int | None, data_range: float | None) -> Iterable[tuple[str, Any]]:
    """Name and clean float32 array of each case; its robust range is [0, 1], or ``data_range`` is 1."""
    reader = VolumeReader()
    for case in load_cases(manifest, split):
        array = reader.get_data(reader.read(case.get("label", case["image"])))[0].astype(np.float32)
        offset, scale = (0.0, data_range) if data_range else robust_range(array, 0.5, 99.5)
        image = normalize(torch.from_numpy(array), offset, scale).numpy()
        if crop:
            image = image[tuple(slice(max(0, (n - crop) // 2), max(0, (n - crop) // 2) + crop) for n in image.shape)]
        yield case["image"], np.ascontiguousarray(image)


def parse_noise(spec: str) -> tuple[str, str, float]:
    """Kind, level as it was written, and level as a number: ``gaussian:25/255``, ``gaussian:2.5/255``, ``rician:0.05``.

    Raises:
        ValueError: If the level is not a number or a fraction.
        UsageError: If there is no such kind or level of noise.
    """
    kind, _, level = spec.partition(":")
    numerator, _, denominator = level.partition("/")
    sigma = float(numerator) / float(denominator or 1)
    Degradation(kind, sigma, 0)  # refuses what it does not know
    return kind, level, sigma


def checked_noise(spec: str) -> str:
    """For argparse: refuse a level before anything is measured."""
    try:
        parse_noise(spec)
    except (UsageError, ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"{spec!r} is not kind:level, such as gaussian:25/255 ({error})") from error
    return spec


def power_spectrum(degradation: Degradation, shape: tuple[int, ...]) -> np.ndarray | None:
    """Of coloured noise: the expected square of its discrete Fourier transform; None if the noise is white.

    Of nonstationary noise, it is the spectrum; how its level varies over the image is told to nobody.
    """
    kind = degradation.kind.removesuffix("_rician")
    if kind not in TRANSFER:
        return None
    transfer = TRANSFER[kind](shape, torch.Generator().manual_seed(degradation.seed))
    power: np.ndarray = transfer.double().numpy() ** 2
    return power * (degradation.sigma**2 * math.prod(shape))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, as they are written to ``quality.json``."""
    rows = []
    grey = options.range or 1
    models: dict[tuple[str, int], Any] = {}
    for name, clean in clean_images(options.manifest, options.split, options.crop, options.range):
        methods: dict[str, Method] = {"noisy": lambda noisy, sigma: noisy}
        for peer, (axes, method) in PEERS.items():
            if clean.ndim in axes and (options.peers is None or peer in options.peers):
                methods[peer] = method
        for model, ensemble in product(options.model, options.ensemble):
            key = (model, ensemble)
            if key not in models:
                models[key] = load_denoiser(
                    model, device=options.device, precision=options.precision, ensemble=ensemble
                )
            label = model if ensemble == 1 else f"{model}, {ensemble} mirror images"
            # In grey values, which is what models with a range of their own know.
            methods[label] = lambda noisy, sigma, key=key: denoise(noisy * grey, models[key]) / grey
        for spec in options.noise:
            kind, level, sigma = parse_noise(spec)
            degradation = Degradation(kind, sigma, case_seed(options.seed, name))
            noisy = degradation.apply(torch.from_numpy(clean)[None])[0].numpy()
            spectrum = power_spectrum(degradation, clean.shape)
            for label, method in methods.items():
                known = sigma if spectrum is None or label not in TAKE_SPECTRUM else spectrum
                start = time.perf_counter()
                denoised = np.asarray(method(noisy, known), dtype=np.float32)
                seconds = time.perf_counter() - start
                if kind.endswith("rician") and label in PEERS:
                    denoised = without_rician_bias(denoised, sigma).astype(np.float32)
                row = {"case": name, "noise": kind, "level": level, "sigma": sigma, "method": label}
                rows.append(row | figures(denoised, clean) | {"voxels_per_second": clean.size / seconds})
                if sys.stderr.isatty():
                    print(f"{name} {spec} {label}: {rows[-1]['psnr']:.2f} dB", file=sys.stderr)
    settings = {key: value for key, value in vars(options).items() if key != "output"}
    return {"settings": settings, "threads": torch.get_num_threads(), "rows": rows}


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the cases, one line per noise and level, as Markdown: PSNR / SSIM; then speed."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    levels = list(dict.fromkeys((row["noise"], row["level"]) for row in rows))
    lines = [f"| noise | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for noise, level in levels:
        cells = []
        for method in methods:
            chosen = [r for r in rows if (r["noise"], r["level"], r["method"]) == (noise, level, method)]
            mean = [float(np.mean([row[key] for row in chosen])) for key in ("psnr", "ssim")]
            cells.append(f"{mean[0]:.2f} / {mean[1]:.3f}")
        lines.append(f"| {noise} {level} | {' | '.join(cells)} |")
    speeds = [np.median([r["voxels_per_second"] for r in rows if r["method"] == method]) for method in methods]
    cells = ["" if method == "noisy" else f"{speed:,.0f}" for method, speed in zip(methods, speeds, strict=True)]
    lines.append(f"| voxels/s | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """PSNR over the level, one panel per kind of noise."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(row["noise"] for row in rows))
    figure, panels = pyplot.subplots(1, len(kinds), figsize=(5 * len(kinds), 4), squeeze=False)
    for panel, kind in zip(panels[0], kinds, strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            chosen = [row for row in rows if row["noise"] == kind and row["method"] == method]
            sigmas = sorted({row["sigma"] for row in chosen})
            means = [np.mean([row["psnr"] for row in chosen if row["sigma"] == sigma]) for sigma in sigmas]
            panel.plot(sigmas, means, marker="o", label=method)
        panel.set(title=f"{kind} noise", xlabel="sigma, share of the intensity range", ylabel="PSNR (dB)")
        panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(noise: Sequence[str] = (*GAUSSIAN, *RICIAN)) -> None:
    """Parse, measure, write; ``noise`` is what is measured by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--model", action="append", help="model to measure, repeatable [adl3d]")
    parser.add_argument(
        "--ensemble", action="append", type=int, choices=MIRROR_IMAGES, help="mirror images, repeatable [1]"
    )
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), help="peers to run [all that fit the image]")
    parser.add_argument(
        "--noise",
        action="append",
        type=checked_noise,
        help=f"kind:level, repeatable [{' '.join(noise)}]",
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--crop", type=int, help="measure the central cube of this edge only, for slow peers")
    parser.add_argument("--range", type=float, help="grey value that is 1 (255 for 8 bit); else the robust range")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.model = options.model or ["adl3d"]
    options.ensemble = options.ensemble or [1]
    options.noise = options.noise or list(noise)
    options.output.mkdir(parents=True, exist_ok=True)
    results = run(options)
    (options.output / "quality.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (options.output / "quality.md").write_text(table(results["rows"]), encoding="utf-8")
    plot(results["rows"], options.output / "quality.png")
    print(table(results["rows"]))


if __name__ == "__main__":
    main()
