"""The U that denoiser and discriminator share: an encoder with three strides and the stages that climb back."""

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn
from torch.jit import Final

from adl_monai.networks.blocks import ResidualBlock, Spec
from adl_monai.networks.recompute import Recomputable

DIVISOR = 8  # three strides of 2


def check_divisible(shape: list[int], divisor: int) -> None:
    """Raise a ValueError unless every spatial size is a multiple of ``divisor``."""
    padded = [(size + divisor - 1) // divisor * divisor for size in shape]
    if padded != shape:
        given = ", ".join([str(size) for size in shape])
        wanted = ", ".join([str(size) for size in padded])
        raise ValueError(f"shape ({given}) is not divisible by {divisor}; pad to ({wanted})")


def check_arguments(spatial_dims: int, channels: Sequence[int], filters: Sequence[int]) -> None:
    """Raise a ValueError unless dimensions, channel counts and filters describe a network that can be built."""
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims is {spatial_dims!r}; expected 2 or 3.")
    if any(count < 1 for count in channels):
        raise ValueError(f"channels are {tuple(channels)}; expected at least 1 of each.")
    if len(filters) != 4 or any(not isinstance(count, int) or count < 1 for count in filters):
        raise ValueError(f"filters are {tuple(filters)}; expected 4 positive integers (f1, f2, f3, bridge).")


class UEncoder(nn.Module):
    """Residual blocks f1 (full size), f2 (1/2), f3 (1/4) and the bridge fb (1/8).

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        filters: (f1, f2, f3, fb).
        norm: MONAI's norm notation, or None.
        act: MONAI's activation notation.
        bias: Whether the 3³ convolutions have a bias.
    """

    divisor: Final[int] = DIVISOR

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        filters: Sequence[int],
        norm: Spec | None,
        act: Spec,
        bias: bool = False,
    ) -> None:
        super().__init__()
        f1, f2, f3, fb = filters
        self.encode1 = ResidualBlock(spatial_dims, in_channels, f1, 1, norm, act, bias)
        self.encode2 = ResidualBlock(spatial_dims, f1, f2, 2, norm, act, bias)
        self.encode3 = ResidualBlock(spatial_dims, f2, f3, 2, norm, act, bias)
        self.bridge = ResidualBlock(spatial_dims, f3, fb, 2, norm, act, bias)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, C, H, W[, D]) → features at full, 1/2, 1/4 and 1/8 size.

        Raises:
            ValueError: If a spatial size is no multiple of 8.
        """
        check_divisible(list(image.shape[2:]), self.divisor)
        full = self.encode1(image)
        half = self.encode2(full)
        quarter = self.encode3(half)
        return full, half, quarter, self.bridge(quarter)


class DecoderStage(Recomputable):
    """Transposed convolution ×2 → join the skip → residual block.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels that come from below.
        skip_channels: Channels that join at this size.
        out_channels: Channels of the stage, before and after the join.
        norm: MONAI's norm notation, or None.
        act: MONAI's activation notation.
        bias: Whether the block's 3³ convolutions have a bias.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        norm: Spec | None,
        act: Spec,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.upsample = Conv["convtrans", spatial_dims](
            in_channels, out_channels, 3, stride=2, padding=1, output_padding=1, bias=False
        )
        self.block = ResidualBlock(spatial_dims, out_channels + skip_channels, out_channels, 1, norm, act, bias)
        if norm is None:
            # Kaiming for a linear layer; a transposed kernel of stride 2 puts only 1 tap in 2^dims on a voxel.
            nn.init.kaiming_normal_(self.upsample.weight, mode="fan_out", nonlinearity="linear")
            with torch.no_grad():
                self.upsample.weight.mul_(2 ** (spatial_dims / 2))

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """(B, in_channels, H/2, W/2[, D/2]) and (B, skip_channels, H, W[, D]) → (B, out_channels, H, W[, D])."""
        return self.block(torch.cat([self.upsample(coarse), skip], dim=1))
