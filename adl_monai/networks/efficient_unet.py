"""The denoiser: an Efficient-UNet with a content enhancer and three heads."""

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Pool
from torch import Tensor, nn
from torch.jit import Final

from adl_monai.networks.backbone import DIVISOR, DecoderStage, UEncoder, check_arguments
from adl_monai.networks.blocks import ContentEnhancer, Spec, TransformerHead

HEADS = ("sigmoid", "residual")
RESIDUAL_START = 1e-2  # standard deviation of a residual head's last weights: the fresh network is nearly an identity


class EfficientUNet(nn.Module):
    divisor: Final[int] = DIVISOR
    multi_scale: Final[bool]
    enhances_content: Final[bool]
    predicts_residual: Final[bool]

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        out_channels: int = 1,
        filters: Sequence[int] = (96, 128, 160, 192),
        norm: Spec | None = "batch",
        act: Spec = "relu",
        head: str = "sigmoid",
        content_enhancer: bool = True,
        multi_scale: bool = True,
    ) -> None:
        super().__init__()
        check_arguments(spatial_dims, (in_channels, out_channels), filters)
        if head not in HEADS:
            raise ValueError(f"head is {head!r}; expected one of {', '.join(HEADS)}.")
        if head == "residual" and in_channels != out_channels:
            raise ValueError(
                f"a residual head subtracts from the input, but in_channels is {in_channels} and out_channels is "
                f"{out_channels}; make them equal or use head='sigmoid'."
            )
        self.multi_scale = multi_scale
        self.enhances_content = content_enhancer
        self.predicts_residual = head == "residual"

        f1, f2, f3, fb = filters
        self.encoder = UEncoder(spatial_dims, in_channels, filters, norm, act)
        if content_enhancer:
            self.enhancer = ContentEnhancer(spatial_dims, in_channels, f1, norm, act)
        self.decode3 = DecoderStage(spatial_dims, fb, f3, f3, norm, act)
        self.decode2 = DecoderStage(spatial_dims, f3, f2, f2, norm, act)
        self.decode1 = DecoderStage(spatial_dims, f2, f1 + f1 * content_enhancer, f1, norm, act)
        self.head1 = TransformerHead(spatial_dims, f1, out_channels, 1, norm, act)
        self.head2 = TransformerHead(spatial_dims, f2, out_channels, 2, norm, act)
        self.head3 = TransformerHead(spatial_dims, f3, out_channels, 3, norm, act)
        self.halve = Pool["avg", spatial_dims](2)
        if self.predicts_residual:
            for transformer in (self.head1, self.head2, self.head3):
                nn.init.normal_(transformer.project.weight, std=RESIDUAL_START)

    def forward(self, noisy: Tensor) -> Tensor | list[Tensor]:
        skip1, skip2, skip3, bridge = self.encoder(noisy)
        if self.enhances_content:
            skip1 = torch.cat([skip1, self.enhancer(noisy)], dim=1)
        quarter = self.decode3(bridge, skip3)
        half = self.decode2(quarter, skip2)
        full = self.decode1(half, skip1)
        if self.multi_scale:
            noisy_half = self.halve(noisy.float())
            noisy_quarter = self.halve(noisy_half)
            return [
                self.finish(noisy, self.head1(full)),
                self.finish(noisy_half, self.head2(half)),
                self.finish(noisy_quarter, self.head3(quarter)),
            ]
        return self.finish(noisy, self.head1(full))

    def finish(self, noisy: Tensor, raw: Tensor) -> Tensor:
        if self.predicts_residual:
            return noisy.float() - raw.float()
        return torch.sigmoid(raw.float())
