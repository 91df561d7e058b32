"""Our inferer beside MONAI's sliding window: speed, and how far the tiles' seams are from the volume in one piece.

MONAI's gets the same network as PyTorch users have it (float32, contiguous) and its own defaults; once more with the
precision and the memory format of ours, which shows what is left to the inferer alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from timing import interleave
from torch import Tensor

from adl_monai.bundle import load_denoiser
from adl_monai.compute import autocast, autocast_dtype
from speed_parts.scans import SIGMA, clean_volume, noisy_copy
from speed_parts.settings import Report, Row, Settings

MONAI: dict[str, dict[str, Any]] = {
    "MONAI, overlap 0.25, constant (its defaults)": {"overlap": 0.25, "mode": "constant"},
    "MONAI, overlap 0.5, gaussian": {"overlap": 0.5, "mode": "gaussian"},
}
TUNED = "MONAI, its defaults, our precision and memory format"


def plain(network: torch.nn.Module) -> torch.nn.Module:
    """A copy in float32 and PyTorch's usual memory format."""
    return copy.deepcopy(network).float().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def methods_for(
    volume: Tensor, window: int, device: str = "cpu"
) -> tuple[dict[str, Callable[[], Any]], Callable[[], Tensor]]:
    """Our inferer at its default precision (and in float32, if that is another) and MONAI's, on one volume.

    Args:
        volume: (1, 1, H, W, D), about [0, 1], on the device.
        window: Edge of MONAI's window in voxels.
        device: Where the networks run.

    Returns:
        The methods by name, ours first, and the whole volume in one piece in float32.
    """
    methods: dict[str, Callable[[], Any]] = {}
    default = autocast_dtype("auto", torch.device(device))
    for precision in ("auto", "fp32") if default is not None else ("auto",):
        denoiser = load_denoiser("adl3d", device=device, precision=precision, ensemble=1)
        dtype = default if precision == "auto" and default is not None else torch.float32
        name = f"ours, {str(dtype).removeprefix('torch.')}"
        methods[name] = partial(denoiser.inferer, volume, denoiser.network)
    network = plain(load_denoiser("adl3d", device=device, precision="fp32").network)
    for name, options in MONAI.items():
        methods[name] = partial(SlidingWindowInferer(window, **options), volume, network)
    placed = load_denoiser("adl3d", device=device).network

    def tuned(tiles: Tensor) -> Tensor:
        with autocast("auto", tiles.device):
            return placed(tiles.to(memory_format=torch.channels_last_3d))  # type: ignore[no-any-return]

    methods[TUNED] = partial(SlidingWindowInferer(window), volume, tuned)
    return methods, lambda: network(volume)


def measure(settings: Settings) -> Report:
    """All of them in turn on one noisy volume."""
    clean = clean_volume(settings.sizes.volume, settings.seed)
    volume = torch.from_numpy(noisy_copy(clean, SIGMA, settings.seed))[None, None]
    return compare(volume, settings.sizes.tile, settings, float(clean.max() - clean.min()))


def compare(
    volume: Tensor,
    window: int,
    settings: Settings,
    intensity_range: float,
    device: str = "cpu",
    synchronize: Callable[[], object] | None = None,
) -> Report:
    """Seam errors, relative to the intensity range, and speeds.

    Args:
        volume: (1, 1, H, W, D) on the device, sizes that the network takes whole.
        window: Edge of MONAI's window in voxels.
        settings: Rounds.
        intensity_range: Of the clean volume.
        device: Where the networks run.
        synchronize: Waits for the device.
    """
    methods, whole = methods_for(volume, window, device)
    others = (*MONAI, TUNED)
    ours = [name for name in methods if name not in others]
    with torch.inference_mode():
        expected = whole()
        errors = {}
        for name, method in methods.items():
            difference = (method() - expected).abs() / intensity_range
            errors[name] = (float(difference.max()), float(difference.mean()))
        del expected
        # The runs above have warmed everything up.
        rounds = interleave(methods, settings.pairs, warmup=0, synchronize=synchronize)
    rows: list[Row] = []
    for name, seconds in rounds.items():
        row: Row = {
            "method": name,
            "voxels/s": seconds.rate(volume.numel()),
            "greatest seam error": errors[name][0],
            "mean seam error": errors[name][1],
        }
        row |= {f"{mine}: times as fast": seconds / rounds[mine] if mine != name else None for mine in ours}
        rows.append(row)
    ratios = {mine: {other: (rounds[other] / rounds[mine]).median for other in others} for mine in ours}
    return Report(rows, tuple(statement(mine, errors, ratios[mine]) for mine in ours))


def statement(mine: str, errors: dict[str, tuple[float, float]], ratios: dict[str, float]) -> str:
    """How much faster we are than those whose seam error, greatest and mean, is not below ours.

    Args:
        mine: The name of our method.
        errors: Greatest and mean seam error by method.
        ratios: How many times as fast we are, by the others' names.
    """
    beaten = [name for name in ratios if all(a <= b for a, b in zip(errors[mine], errors[name], strict=True))]
    closer = [name for name in ratios if name not in beaten]
    parts = [f"{ratios[name]:.2f} times as fast as {name} at an equal or lower seam error" for name in beaten]
    parts += [
        f"{ratios[name]:.2f} times as fast as {name}, whose seam error is lower in "
        + " and ".join(
            which for which, a, b in zip(("its greatest", "its mean"), errors[mine], errors[name], strict=True) if a > b
        )
        for name in closer
    ]
    return f"{mine}: {'; '.join(parts)}."
