"""The shipped networks' own rate against what the machine does at best, and the convolutions that it goes into."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timing import interleave

from adl_monai.bundle import Denoiser, load_denoiser
from adl_monai.compute import autocast_dtype, multiplies_bfloat16
from speed_parts.roofline import best_product, copy_rate, count_flops, layer_kinds, network_forward, random_tile
from speed_parts.settings import Report, Row, Settings

MODELS = {"adl3d": 3, "adl2d": 2}
SLOWEST = 12  # kinds of convolutions that get a row


def measure(settings: Settings) -> Report:
    """Networks and matrix products in turn; then the layers."""
    cpu, sizes = torch.device("cpu"), settings.sizes
    rows: list[Row] = []
    statements = []
    layers: list[Row] = []
    # The default precision first. What the processor does not multiply natively takes minutes and says nothing.
    precisions = ["auto"]
    if multiplies_bfloat16(cpu):
        precisions.append("bf16" if autocast_dtype("auto", cpu) is None else "fp32")
    dtypes = {precision: autocast_dtype(precision, cpu) or torch.float32 for precision in precisions}
    ceilings = {dtype: best_product(sizes.products, dtype, cpu, sizes.least_seconds) for dtype in dtypes.values()}
    for dtype, (size, rate, _) in ceilings.items():
        name = f"product of two {size}x{size} matrices, {str(dtype).removeprefix('torch.')}, best"
        rows.append({"what": name, "GFLOP/s": rate / 1e9, "share of the ceiling": None, "voxels/s": None})
    bandwidth = copy_rate(sizes.copied_floats, cpu, sizes.least_seconds)
    rows.append({"what": "copy in memory", "GB/s": bandwidth / 1e9})
    for model, axes in MODELS.items():
        network = load_denoiser(model, device="cpu").network
        tile = random_tile(axes, sizes.tile if axes == 3 else sizes.tile_2d, settings.seed)
        for precision, dtype in dtypes.items():
            forward = network_forward(network, tile, precision)
            size, rate, product = ceilings[dtype]
            denoiser = load_denoiser(model, device="cpu", precision=precision, ensemble=1)
            image = torch.rand(1, 1, *[sizes.swept if axes == 3 else sizes.image] * axes)
            rounds = interleave(
                {"network": forward, "inferer": swept(denoiser, image), "product": product},
                settings.pairs,
                warmup=settings.warmup,
                least_seconds=sizes.least_seconds,
            )
            flops = count_flops(forward)
            precise = str(dtype).removeprefix("torch.")
            name = f"{model}, {'x'.join(map(str, tile.shape[2:]))}, {precise}"
            name_swept = f"{model} in the inferer, {'x'.join(map(str, image.shape[2:]))}, {precise}"
            for key, what, voxels in (("network", name, tile.numel()), ("inferer", name_swept, image.numel())):
                done = flops * voxels / tile.numel()
                reached = rounds[key].rate(done) / rounds["product"].rate(2 * size**3)
                rows.append(
                    {
                        "what": what,
                        "GFLOP/s": rounds[key].rate(done / 1e9),
                        "share of the ceiling": reached,
                        "voxels/s": rounds[key].rate(voxels),
                        "kFLOP per voxel": flops / tile.numel() / 1e3,
                    }
                )
                statements.append(f"{what}: {reached.median:.0%} of the best matrix product's rate.")
            if precision == precisions[0]:
                layers += _layer_rows(name, network, tile, precision, rate, bandwidth, sizes.profiled)
    return Report(rows + layers, tuple(statements))


def swept(denoiser: Denoiser, image: torch.Tensor) -> Callable[[], object]:
    """The network as the inferer runs it, on an image in memory."""

    def run() -> object:
        with torch.inference_mode():
            return denoiser.inferer(image, denoiser.network)

    return run


def _layer_rows(
    name: str, network: torch.nn.Module, tile: torch.Tensor, precision: str, peak: float, bandwidth: float, repeats: int
) -> list[Row]:
    kinds, whole = layer_kinds(network, tile, precision, repeats)
    rows: list[Row] = []
    for kind in kinds[:SLOWEST]:
        intensity = kind.flops / kind.least_bytes
        roof = min(peak, intensity * bandwidth)
        rows.append(
            {
                "layers": f"{name}: {kind.count} x {kind.label}",
                "GFLOP/s": kind.flops / kind.seconds / 1e9,
                "share of the ceiling": kind.flops / kind.seconds / peak,
                "share of the time": kind.seconds / whole,
                "FLOP per byte": intensity,
                "share of the roofline": kind.flops / kind.seconds / roof,
            }
        )
    others = kinds[SLOWEST:]
    if others:
        seconds, flops = (sum(getattr(kind, key) for kind in others) for key in ("seconds", "flops"))
        rows.append(
            {
                "layers": f"{name}: {len(others)} other kinds of convolutions",
                "GFLOP/s": flops / seconds / 1e9,
                "share of the ceiling": flops / seconds / peak,
                "share of the time": seconds / whole,
            }
        )
    rest = whole - sum(kind.seconds for kind in kinds)
    rows.append({"layers": f"{name}: all but convolutions", "share of the time": rest / whole})
    return rows
