"""adl-monai with one part of the network exchanged, for rows of the ablation table that no option can ask for.

    python benchmarks/network_variants.py VARIANT train MANIFEST -o RUN ...
    python benchmarks/network_variants.py VARIANT evaluate MANIFEST --model RUN ...

A variant stands in for ``EfficientUNet`` within the command. Its runs can be evaluated by this script alone.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from monai.networks.layers.factories import Pool
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import Tensor, nn

import adl_monai.inferers  # its plane-by-plane form takes the true EfficientUNet only, and has to meet it first
import adl_monai.networks
from adl_monai.cli import main
from adl_monai.networks.backbone import UEncoder
from adl_monai.networks.efficient_unet import EfficientUNet

NORMAL_MEDIAN = 0.6745  # of the absolute value of a standard normal variable


def noise_level(noisy: Tensor) -> Tensor:
    """Estimate the standard deviation of the noise from the finest diagonal differences.

    Args:
        noisy: (B, C, H, W[, D]).

    Returns:
        (B, 1, 1, 1[, 1]), in the units of the image. Structure adds to it, however fine the median.
    """
    detail = noisy.float()
    for axis in range(2, noisy.ndim):
        detail = torch.diff(detail, dim=axis) / 2**0.5
    level = detail.flatten(1).abs().median(dim=1).values / NORMAL_MEDIAN
    return level.reshape(-1, *[1] * (noisy.ndim - 1))


class LevelEncoder(UEncoder):
    """An encoder with one channel more: the noise level, as the image itself shows it. Arguments as ``UEncoder``."""

    def __init__(self, spatial_dims: int, in_channels: int, *others: Any) -> None:
        super().__init__(spatial_dims, in_channels + 1, *others)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As ``UEncoder.forward``."""
        level = noise_level(image).to(image).expand(-1, 1, *image.shape[2:])
        return super().forward(torch.cat([image, level], dim=1))


class NoiseLevelUNet(EfficientUNet):
    """The network with the estimated noise level as a constant channel. Arguments as ``EfficientUNet``."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        keys = ("spatial_dims", "in_channels", "filters", "norm", "act")
        self.encoder = LevelEncoder(*[arguments[key] for key in keys], arguments.get("bias", False))


class SpaceToDepthUNet(nn.Module):
    """The network at half size, on 2^dims channels that hold all voxels. Arguments as ``EfficientUNet``.

    Its coarsest features are 16 times smaller than the patch, not 8, so that 3D patches of less than 48 voxels need
    ``--precision fp32`` on a CPU (see ``adl_monai.compute.training_precision``, which cannot know).
    """

    divisor = 2 * EfficientUNet.divisor

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.dims = dims = arguments["spatial_dims"]
        self.multi_scale = arguments.pop("multi_scale", True)
        channels = {key: arguments.pop(key) * 2**dims for key in ("in_channels", "out_channels")}
        self.inner = EfficientUNet(multi_scale=False, **channels, **arguments)
        self.halve = Pool["avg", dims](2)

    def forward(self, noisy: Tensor) -> Tensor | list[Tensor]:
        """As ``EfficientUNet.forward``; the coarser scales are averages of the full one."""
        full = pixelshuffle(self.inner(pixelunshuffle(noisy, self.dims, 2)), self.dims, 2)
        if not self.multi_scale:
            return full
        half = self.halve(full)
        return [full, half, self.halve(half)]


VARIANTS = {"level": NoiseLevelUNet, "space-to-depth": SpaceToDepthUNet}


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in VARIANTS:
        sys.exit(f"usage: network_variants.py {{{','.join(VARIANTS)}}} COMMAND ...")
    variant = VARIANTS[sys.argv.pop(1)]
    setattr(adl_monai.networks, "EfficientUNet", variant)  # noqa: B010 (a class is no attribute to assign, for mypy)
    main()
