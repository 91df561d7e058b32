"""A network that grew: forward and backward of a batch where all of it learns, and where what it was is held."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from monai.bundle import ConfigParser
from timing import interleave

from adl_monai.bundle import shipped_bundle
from adl_monai.compute import autocast, place
from adl_monai.networks import EfficientUNet
from adl_monai.networks.growth import grown_weights, learning_channels
from adl_monai.networks.partial_gradient import learn_only
from speed_parts.settings import Report, Row, Settings

GROWN = 1.5  # times the filters of the default preset
BATCHES = {2: (8, 1, 96, 96), 3: (4, 1, 32, 32, 32)}


def twins(spatial_dims: int, seed: int) -> dict[str, torch.nn.Module]:
    """The default preset's network, grown: once as ``--init`` trains it, once with ``--hold``."""
    configs = shipped_bundle(spatial_dims) / "configs"
    files = [str(configs / f"{name}.json") for name in ("train", "default")]
    network_def = ConfigParser.load_config_files(files)["network_def"]
    arguments = {key: value for key, value in network_def.items() if key != "_target_"}
    torch.manual_seed(seed)
    narrow = EfficientUNet(**arguments).state_dict()
    wide = EfficientUNet(**arguments | {"filters": [int(GROWN * width) for width in arguments["filters"]]})
    wide.load_state_dict(grown_weights(narrow, wide))
    place(wide, torch.device("cpu"), spatial_dims)
    held = copy.deepcopy(wide)
    learn_only(held, learning_channels(narrow, held))
    return {"all learn": wide, "held: the new channels learn": held}


def step(network: torch.nn.Module, noisy: torch.Tensor) -> None:
    """Forward and backward in the default precision; the update takes little beside them and is left out."""
    with autocast("auto", noisy.device):
        images = network(noisy)
    sum(image.float().square().mean() for image in images).backward()  # type: ignore[union-attr]


def measure(settings: Settings) -> Report:
    """Batches of the default patch size, 2D and 3D."""
    rows: list[Row] = []
    for spatial_dims, shape in BATCHES.items():
        noisy = torch.rand(shape)
        networks = twins(spatial_dims, settings.seed)
        methods: dict[str, Callable[[], object]] = {
            name: partial(step, network, noisy) for name, network in networks.items()
        }
        rounds = interleave(methods, settings.pairs, warmup=settings.warmup)
        first = next(iter(rounds.values()))
        for name, seconds in rounds.items():
            times = None if seconds is first else first / seconds
            patches = seconds.rate(shape[0])
            rows.append({"weights": f"{spatial_dims}D, {name}", "patches/s": patches, "times as fast": times})
    return Report(rows)
