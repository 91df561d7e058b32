"""The discriminator: the same U as the denoiser, judging every voxel at four scales."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.jit import Final

from adl_monai.networks.backbone import DIVISOR, DecoderStage, UEncoder, check_arguments
from adl_monai.networks.blocks import Spec, TransformerHead, conv


class EfficientUNetDiscriminator(nn.Module):
    """Four masks of real/fake logits: Efficient-UNet without content enhancer (paper, discriminator).

    A mapper (1³ convolution) follows each T_n and the bridge. The 1³ convolution that ends T_n and its mapper would
    be one linear map, so they are one layer here. The sigmoid lives in the loss, which needs logits to be stable.

    With the paper's filters it has 988,750 parameters in 2D with one channel (3D: 2,862,118). The public code of 2022
    counts 0.62 M, because its discriminator has filters (16, 32, 64, 128).

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        filters: (f1, f2, f3, bridge); the paper's are (48, 64, 80, 96).
        norm: MONAI's norm notation, or None.
        act: MONAI's activation notation, e.g. ``("leakyrelu", {"negative_slope": 0.1})``.

    Raises:
        ValueError: If an argument does not describe a network.

    Source: Ghahremani et al., "Adversarial Distortion Learning for Medical Image Denoising", arXiv 2204.14100.
    """

    divisor: Final[int] = DIVISOR

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        filters: Sequence[int] = (48, 64, 80, 96),
        norm: Spec | None = "batch",
        act: Spec = "relu",
    ) -> None:
        super().__init__()
        check_arguments(spatial_dims, [in_channels], filters)
        f1, f2, f3, fb = filters
        self.encoder = UEncoder(spatial_dims, in_channels, filters, norm, act)
        self.decode3 = DecoderStage(spatial_dims, fb, f3, f3, norm, act)
        self.decode2 = DecoderStage(spatial_dims, f3, f2, f2, norm, act)
        self.decode1 = DecoderStage(spatial_dims, f2, f1, f1, norm, act)
        self.mask1 = TransformerHead(spatial_dims, f1, 1, 1, norm, act)
        self.mask2 = TransformerHead(spatial_dims, f2, 1, 2, norm, act)
        self.mask3 = TransformerHead(spatial_dims, f3, 1, 3, norm, act)
        self.mask_bridge = conv(spatial_dims, fb, 1, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Judge a clean or a denoised image.

        Args:
            image: (B, in_channels, H, W[, D]), sizes multiples of 8.

        Returns:
            Logits (B, 1, ...) at full, 1/2, 1/4 and 1/8 size; positive means "clean".

        Raises:
            ValueError: If a spatial size is no multiple of 8.
        """
        skip1, skip2, skip3, bridge = self.encoder(image)
        quarter = self.decode3(bridge, skip3)
        half = self.decode2(quarter, skip2)
        full = self.decode1(half, skip1)
        return [self.mask1(full), self.mask2(half), self.mask3(quarter), self.mask_bridge(bridge)]
