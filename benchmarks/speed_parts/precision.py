"""What the default precision costs: PSNR against float32, on the same noisy images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import torch

from adl_monai.bundle import Denoiser, load_denoiser
from adl_monai.compute import autocast_dtype
from adl_monai.data.degradations import case_seed
from adl_monai.data.io import read_volume
from adl_monai.data.normalization import normalize, robust_range
from adl_monai.data.synthetic import synthetic_volume
from adl_monai.errors import UsageError
from adl_monai.metrics import psnr
from adl_monai.stages.arrays import denoise
from speed_parts.scans import noisy_copy
from speed_parts.settings import Report, Row, Settings

LEVELS = (2.5, 10.0, 25.0)  # of 255
KINDS = ("scan", "tissue")
SEEDS = 2  # volumes of each kind


def clean_crops(settings: Settings) -> Iterator[tuple[str, np.ndarray | None, str]]:
    """Name, clean volume in about [0, 1] (None where it cannot be made), and why not."""
    edge = settings.sizes.precision
    for path in settings.volumes:
        array = read_volume(path).array.astype(np.float32)
        offset, scale = robust_range(array)
        image = normalize(torch.from_numpy(array), offset, scale).numpy()
        starts = [max(0, (size - edge) // 2) for size in image.shape]
        yield path.name, np.ascontiguousarray(image[tuple(slice(start, start + edge) for start in starts)]), ""
    for kind, seed in product(KINDS, range(settings.seed, settings.seed + SEEDS)):
        try:
            yield f"generated {kind} {seed}", synthetic_volume((edge,) * 3, seed, kind), ""
        except (UsageError, ImportError) as error:  # tissue needs a package more
            yield f"generated {kind} {seed}", None, str(error)


def measure(settings: Settings) -> Report:
    """The 3D model on crops, the 2D model on their middle slices."""
    dtype = autocast_dtype("auto", torch.device("cpu")) or torch.float32
    name = str(dtype).removeprefix("torch.")
    models = {
        model: [load_denoiser(model, device="cpu", precision=precision, ensemble=1) for precision in ("fp32", "auto")]
        for model in ("adl3d", "adl2d")
    }
    rows: list[Row] = []
    for case, clean, reason in clean_crops(settings):
        if clean is None:
            rows.append({"image": f"{case}: {reason}"})
            continue
        for model, pair in models.items():
            as_it_is = clean.ndim == 2 or model == "adl3d"
            image = clean if as_it_is else np.ascontiguousarray(clean[..., clean.shape[-1] // 2])
            if image.ndim == pair[0].spatial_dims:
                rows += _rows(case, model, image, pair, name, settings.seed)
    lost = [row["dB lost"] for row in rows if "dB lost" in row]
    return Report(
        rows, (f"{name} against float32 loses {np.mean(lost):.4f} dB on average, {max(lost):.4f} dB at most.",)
    )


def _rows(case: str, model: str, clean: np.ndarray, pair: list[Denoiser], name: str, seed: int) -> Iterator[Row]:
    for level in LEVELS:
        noisy = noisy_copy(clean, level / 255, case_seed(seed, f"{case} {level}"))
        expected = torch.from_numpy(clean)[None, None]
        results = [torch.from_numpy(denoise(noisy, denoiser))[None, None] for denoiser in pair]
        exact, default = (float(psnr(result, expected, 1.0)) for result in results)
        yield {
            "image": case,
            "model": model,
            "sigma": f"{level:g}/255",
            "PSNR float32 (dB)": exact,
            f"PSNR {name} (dB)": default,
            "dB lost": exact - default,
        }
