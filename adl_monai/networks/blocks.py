"""The units the Efficient-UNet is built of: residual block, transformer head and content enhancer.

No convolution carries a bias by default, as in the paper. Without normalisation (``norm=None``) that makes a network
positively homogeneous: scaling the image by a > 0 scales the output by a, which is why bias-free denoisers carry over
to noise levels they were not trained on (Mohan et al., 2020, arXiv 1906.05478). With ``bias=True``, convolutions wider
than one voxel have one, 0 at first: those of one, which stand beside or behind them, would add next to nothing.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.layers import get_act_layer, get_norm_layer
from monai.networks.layers.factories import Conv, split_args
from torch import Tensor, nn
from torch.nn import functional

from adl_monai.networks.recompute import Recomputable

Spec = str | tuple  # a layer in MONAI's notation: "batch" or ("group", {"num_groups": 4})
ConvNd = nn.Conv2d | nn.Conv3d

SAFE_CHANNELS = 16  # see ThinningConv2d
BRANCH_START = 0.3  # last kernel of a residual branch without norm against Kaiming: small, yet gradients pass


class ThinningConv2d(nn.Conv2d):
    """A 1² convolution with a stride that drops the pixels it steps over first: the same function, right gradients.

    oneDNN's weight gradient of the usual one writes where it must not if there are fewer channels to read than one of
    its vectors holds (torch 2.13: 8 in float32 on a CPU with AVX2 and no AVX-512, where gradients are wrong; 16 in
    bfloat16 on one with AVX512-BF16; the process may crash).
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H/stride, W/stride), rounded up."""
        thinned = input[:, :, :: self.stride[0], :: self.stride[1]]
        return functional.conv2d(thinned, self.weight)


def conv(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    size: int,
    stride: int = 1,
    dilation: int = 1,
    bias: bool = False,
) -> ConvNd:
    """A convolution that keeps the spatial size (divided by ``stride``); its bias, if it has one, starts at 0."""
    padding = dilation * (size - 1) // 2
    if (spatial_dims, size) == (2, 1) and stride > 1 and in_channels < SAFE_CHANNELS:
        return ThinningConv2d(in_channels, out_channels, size, stride=stride, bias=False)
    layer: ConvNd = Conv["conv", spatial_dims](
        in_channels, out_channels, size, stride=stride, padding=padding, dilation=dilation, bias=bias
    )
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def norm_layer(spatial_dims: int, channels: int, norm: Spec | None) -> nn.Module:
    """A normalisation layer in MONAI's notation; ``None`` gives an identity.

    A group norm takes the largest divisor it shares with ``channels`` as its number of groups, because heads halve
    their channels down to widths that the asked-for number need not divide.

    Raises:
        ValueError: If a group norm comes without ``num_groups``.
    """
    if norm is None:
        return nn.Identity()
    name, options = split_args(norm)
    if str(name).lower() == "group":
        if "num_groups" not in options:
            raise ValueError(f'norm {norm!r} has no num_groups; write ("group", {{"num_groups": 4}}).')
        norm = (name, {**options, "num_groups": math.gcd(options["num_groups"], channels)})
    return get_norm_layer(norm, spatial_dims=spatial_dims, channels=channels)


def start_unnormalised(first: Sequence[ConvNd], last: ConvNd, shortcut: ConvNd) -> None:
    """Start a residual unit that has no normalisation: Kaiming throughout, the last kernel of the branch small.

    The signal then keeps its size along the shortcuts, however deep the stack, and the branches grow in training.
    """
    for layer in (*first, last, shortcut):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    with torch.no_grad():
        last.weight.mul_(BRANCH_START)


@torch.no_grad()
def start_as_average(shortcut: ConvNd) -> None:
    """Fill a 1³ kernel so that each output channel averages its share of the input channels.

    A head narrows to a few channels; with random signs all of them may start negative, and then the rectifier
    switches the head off for good. An average of rectified features stays positive.
    """
    out_channels, in_channels = shortcut.weight.shape[:2]
    outputs, inputs = torch.arange(out_channels)[:, None], torch.arange(in_channels)[None, :]
    shared = ((inputs - outputs) % min(in_channels, out_channels) == 0).to(shortcut.weight)
    shortcut.weight.copy_((shared / shared.sum(1, keepdim=True)).reshape(shortcut.weight.shape))


class ResidualBlock(Recomputable):
    """Two 3³ convolutions beside a 1³ shortcut (paper, figure of the blocks).

    3³ conv (stride) → norm → act → 3³ conv → norm; plus 1³ conv (stride) of the input; sum → act.
    Without norm, the branch starts small beside the shortcut, so that a deep stack neither dies nor explodes.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: 1 keeps the size, 2 halves it.
        norm: MONAI's norm notation, or None.
        act: MONAI's activation notation.
        bias: Whether the 3³ convolutions have a bias.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        norm: Spec | None = "batch",
        act: Spec = "relu",
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = conv(spatial_dims, in_channels, out_channels, 3, stride=stride, bias=bias)
        self.norm1 = norm_layer(spatial_dims, out_channels, norm)
        self.act1 = get_act_layer(act)
        self.conv2 = conv(spatial_dims, out_channels, out_channels, 3, bias=bias)
        self.norm2 = norm_layer(spatial_dims, out_channels, norm)
        self.shortcut = conv(spatial_dims, in_channels, out_channels, 1, stride=stride)
        self.act2 = get_act_layer(act)
        if norm is None:
            start_unnormalised([self.conv1], self.conv2, self.shortcut)
            if in_channels == out_channels:
                start_as_average(self.shortcut)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, H, W[, D]) → (B, out_channels, H/stride, W/stride[, D/stride])."""
        branch = self.act1(self.norm1(self.conv1(features)))
        branch = self.norm2(self.conv2(branch))
        return self.act2(branch + self.shortcut(features))


class TransformerHead(Recomputable):
    """T_n of the paper: ``depth`` residual blocks, each halving the channels, then a 1³ convolution.

    The values are raw: the network applies the sigmoid or the subtraction. ("Transformer" is the paper's word; there
    is no attention in it.)

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the decoder stage the head sits on.
        out_channels: Channels of the image, or 1 for a mask of logits.
        depth: Number n of residual blocks; the channels never fall below 1.
        norm: MONAI's norm notation, or None. Group norms adapt to the shrinking width, see ``norm_layer``.
        act: MONAI's activation notation.
        bias: Whether the blocks have biases.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        depth: int,
        norm: Spec | None = "batch",
        act: Spec = "relu",
        bias: bool = False,
    ) -> None:
        super().__init__()
        widths = [max(1, in_channels // 2**level) for level in range(depth + 1)]
        pairs = pairwise(widths)
        blocks = [ResidualBlock(spatial_dims, wide, narrow, norm=norm, act=act, bias=bias) for wide, narrow in pairs]
        self.blocks = nn.Sequential(*blocks)
        self.project = conv(spatial_dims, widths[-1], out_channels, 1)
        if norm is None:
            for block in blocks:
                start_as_average(block.shortcut)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, H, W[, D]) → raw values (B, out_channels, H, W[, D])."""
        return self.project(self.blocks(features))


class ContentEnhancer(Recomputable):
    """Features of the noisy image from a wide view at full resolution (paper, content enhancer).

    Two parallel 7³ convolutions, dilation 1 and 4 → joined → norm → act → 3³ conv → norm; plus a 1³ conv of the
    image; sum → act. Each parallel convolution has half the output channels. What it sees is 27 voxels wide.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        out_channels: Channels of the features.
        norm: MONAI's norm notation, or None.
        act: MONAI's activation notation.
        bias: Whether the 7³ and 3³ convolutions have a bias.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        norm: Spec | None = "batch",
        act: Spec = "relu",
        bias: bool = False,
    ) -> None:
        super().__init__()
        half = (out_channels + 1) // 2
        self.near = conv(spatial_dims, in_channels, half, 7, bias=bias)
        self.far = conv(spatial_dims, in_channels, half, 7, dilation=4, bias=bias)
        self.norm1 = norm_layer(spatial_dims, 2 * half, norm)
        self.act1 = get_act_layer(act)
        self.join = conv(spatial_dims, 2 * half, out_channels, 3, bias=bias)
        self.norm2 = norm_layer(spatial_dims, out_channels, norm)
        self.shortcut = conv(spatial_dims, in_channels, out_channels, 1)
        self.act2 = get_act_layer(act)
        if norm is None:
            start_unnormalised([self.near, self.far], self.join, self.shortcut)

    def forward(self, noisy: Tensor) -> Tensor:
        """(B, in_channels, H, W[, D]) → (B, out_channels, H, W[, D])."""
        branch = self.act1(self.norm1(torch.cat([self.near(noisy), self.far(noisy)], dim=1)))
        branch = self.norm2(self.join(branch))
        return self.act2(branch + self.shortcut(noisy))
