"""The published 2D network, of random weights, on one image: PyTorch's plain forward beside our inferer."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import interleave

from adl_monai.bundle import load_denoiser, shipped_bundle
from adl_monai.bundle_of_a_run import write_bundle
from adl_monai.compute import autocast_dtype
from adl_monai.networks import EfficientUNet
from speed_parts.roofline import count_flops, random_tile
from speed_parts.settings import Report, Row, Settings
from speed_parts.tiling import plain


def paper_bundle(root: Path, seed: int) -> Path:
    """Write a bundle of the 2D paper preset with random weights; returns its folder."""
    source = shipped_bundle(2)
    preset = json.loads((source / "configs" / "paper.json").read_text(encoding="utf-8"))
    write_bundle(source, root, preset["network_def"], {})
    arguments = {key: value for key, value in preset["network_def"].items() if key != "_target_"}
    torch.manual_seed(seed)
    torch.save(EfficientUNet(**arguments).state_dict(), root / "models" / "model.pt")
    return root


def measure(settings: Settings) -> Report:
    """Float32, contiguous, the whole image at once, against the inferer at each precision."""
    root = paper_bundle(settings.scratch / "paper2d", settings.seed)
    image = random_tile(2, settings.sizes.image, settings.seed)
    default = autocast_dtype("auto", image.device)
    denoisers = {
        f"ours, {str(default or torch.float32).removeprefix('torch.')}": load_denoiser(root, device="cpu", ensemble=1),
        "ours, float32": load_denoiser(root, device="cpu", precision="fp32", ensemble=1),
    }
    network = plain(denoisers["ours, float32"].network)
    name = "PyTorch, float32, contiguous, in one piece"
    methods: dict[str, Callable[[], Any]] = {
        label: partial(denoiser.inferer, image, denoiser.network) for label, denoiser in denoisers.items()
    }
    methods[name] = partial(network, image)
    with torch.inference_mode():
        expected = network(image)
        differences = {label: float((method() - expected).abs().max()) for label, method in methods.items()}
        # The runs above have warmed everything up.
        rounds = interleave(methods, settings.pairs, warmup=0, least_seconds=settings.sizes.least_seconds)
        flops = count_flops(methods[name])
    rows: list[Row] = [
        {
            "method": label,
            "seconds": seconds,
            "pixels/s": seconds.rate(image.numel()),
            "times as fast as PyTorch": rounds[name] / seconds if label != name else None,
            "greatest difference to PyTorch": differences[label],
        }
        for label, seconds in rounds.items()
    ]
    return Report(rows, (f"The forward in one piece takes {flops / 1e9:.1f} GFLOP.",))
