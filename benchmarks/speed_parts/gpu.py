"""The network's rate, the inferer and the training step on a CUDA device, if there is one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timing import interleave

from adl_monai.bundle import load_denoiser
from adl_monai.compute import autocast_dtype
from speed_parts import tiling, training
from speed_parts.roofline import best_product, count_flops, network_forward, random_tile
from speed_parts.scans import SIGMA, clean_volume, noisy_copy
from speed_parts.settings import Report, Row, Settings


def measure(settings: Settings) -> Report:
    """All three, or a row that says there is no device."""
    if not torch.cuda.is_available():
        return Report([{"what": "no CUDA device on this machine"}])
    return measure_on("cuda", settings, torch.cuda.synchronize)


def measure_on(name: str, settings: Settings, synchronize: Callable[[], object]) -> Report:
    """As on a GPU, on any device that torch knows and can wait for."""
    device, sizes = torch.device(name), settings.sizes
    rows: list[Row] = []
    dtype = autocast_dtype("auto", device) or torch.float32
    label = str(dtype).removeprefix("torch.")
    size, _, product = best_product(sizes.products, dtype, device, sizes.least_seconds, synchronize)
    for model, axes in {"adl3d": 3, "adl2d": 2}.items():
        network = load_denoiser(model, device=name).network
        tile = random_tile(axes, sizes.tile if axes == 3 else sizes.tile_2d, settings.seed, device)
        forward = network_forward(network, tile, "auto")
        rounds = interleave(
            {"network": forward, "product": product},
            settings.pairs,
            warmup=settings.warmup,
            least_seconds=sizes.least_seconds,
            synchronize=synchronize,
        )
        flops = count_flops(forward)
        rows.append(
            {
                "what": f"{model} alone, {'x'.join(map(str, tile.shape[2:]))}, {label}",
                "voxels/s": rounds["network"].rate(tile.numel()),
                "GFLOP/s": rounds["network"].rate(flops / 1e9),
                f"share of a {size}x{size} product's rate": rounds["network"].rate(flops)
                / rounds["product"].rate(2 * size**3),
            }
        )
    clean = clean_volume(sizes.volume, settings.seed)
    volume = torch.from_numpy(noisy_copy(clean, SIGMA, settings.seed))[None, None].to(device)
    tiled = tiling.compare(volume, sizes.tile, settings, float(clean.max() - clean.min()), name, synchronize)
    steps = training.measure(settings, name, synchronize)
    rows += [{"what": f"inferer: {row.pop('method')}", **row} for row in tiled.rows]
    rows += [{"what": f"training, batches {row.pop('batches')}", **row} for row in steps.rows]
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else name
    return Report(rows, (f"The device is {device_name}.", *tiled.statements, *steps.statements))
