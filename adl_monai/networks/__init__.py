"""The Efficient-UNet pair: denoiser and discriminator, in 2D and 3D."""

from adl_monai.networks.blocks import ContentEnhancer, ResidualBlock, TransformerHead
from adl_monai.networks.discriminator import EfficientUNetDiscriminator
from adl_monai.networks.efficient_unet import EfficientUNet
from adl_monai.networks.receptive_field import receptive_margin

__all__ = [
    "ContentEnhancer",
    "EfficientUNet",
    "EfficientUNetDiscriminator",
    "ResidualBlock",
    "TransformerHead",
    "receptive_margin",
]
