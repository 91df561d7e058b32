"""How far an Efficient-UNet sees."""

from __future__ import annotations

from adl_monai.networks.backbone import DIVISOR
from adl_monai.networks.blocks import ConvNd, ResidualBlock
from adl_monai.networks.efficient_unet import EfficientUNet

Interval = tuple[int, int]


def receptive_margin(network: EfficientUNet) -> int:
    """What eight neighbouring outputs, the first at a multiple of 8, need to see of the input on either side of them.

    Computed backwards through the layers; eight, because three strides of 2 give neighbours different views. A part of
    an image that starts and ends at multiples of 8 is denoised as in the whole image if it comes with this margin.

    Args:
        network: In 2D or 3D, with kernels of the same size along every axis.

    Returns:
        Voxels along each axis.
    """
    needed = (0, DIVISOR - 1)
    for unit in reversed(list(network.head1.blocks)):
        needed = _before_block(needed, unit)  # type: ignore[arg-type]
    # Down the decoder: what each stage asks of its skip, and of the stage below.
    skips: list[Interval] = []
    for stage in (network.decode1, network.decode2, network.decode3):
        needed = _before_block(needed, stage.block)
        skips.append(needed)
        needed = needed[0] // 2, -(-needed[1] // 2)  # kernel 3, stride 2, padding 1
    # And up the encoder, joined with the skips on the way.
    encoder = network.encoder
    downs = (encoder.bridge, encoder.encode3, encoder.encode2)
    for block, skip in zip(downs, reversed(skips), strict=True):
        needed = _union(_before_block(needed, block), skip)
    on_image = _before_block(needed, encoder.encode1)
    if network.enhances_content:
        joined = _before_conv(skips[0], network.enhancer.join)
        for branch in (network.enhancer.near, network.enhancer.far):
            on_image = _union(on_image, _before_conv(joined, branch))
    return max(-on_image[0], on_image[1] - (DIVISOR - 1))


def _before_conv(needed: Interval, conv: ConvNd) -> Interval:
    stride, reach = conv.stride[0], conv.dilation[0] * (conv.kernel_size[0] - 1) // 2
    return needed[0] * stride - reach, needed[1] * stride + reach


def _before_block(needed: Interval, block: ResidualBlock) -> Interval:
    return _before_conv(_before_conv(needed, block.conv2), block.conv1)


def _union(one: Interval, other: Interval) -> Interval:
    return min(one[0], other[0]), max(one[1], other[1])
