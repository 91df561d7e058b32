"""The denoiser: an Efficient-UNet with a content enhancer and three heads."""

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Pool
from torch import Tensor, nn
from torch.jit import Final

from adl_monai.networks.backbone import DIVISOR, DecoderStage, UEncoder, check_arguments
from adl_monai.networks.blocks import ContentEnhancer, Spec, TransformerHead
from adl_monai.networks.recompute import Recomputable

HEADS = ("sigmoid", "residual")
RESIDUAL_START = 0.01  # size of a fresh residual head's output against its features
RESIDUAL_START_UNNORMALISED = 0.05  # these features are smaller and more alike, so that more of them cancels


@torch.no_grad()
def start_near_identity(weight: Tensor, size: float) -> None:
    """Fill the last kernel (out, in, 1, ...) of a residual head with small weights of alternating sign.

    Its features are rectified and much alike, so that they nearly cancel and the fresh network is close to an
    identity. Weights of one sign could only ever add, or only subtract; random ones that start near zero can drift
    there in the first steps of training and stay.
    """
    each = size / weight.shape[1] ** 0.5
    weight[:, ::2] = each
    weight[:, 1::2] = -each


class EfficientUNet(nn.Module):
    """Blind denoiser for 2D and 3D images, with one denoised image at each of three scales (paper, denoiser).

    Residual blocks f1, f2, f3 and a bridge lead down to 1/8 size; three decoder stages lead back, each with a head.
    The content enhancer's features of the noisy image, as many as f1, join the last stage.

    With the paper's filters it has 4,128,868 parameters in 2D with one channel (3D: 11,980,612) and takes 126.3 GFLOP
    (two per multiply-add) for a 256 × 256 image. The public code of 2022 counts 4,723,644 and 204.5 GFLOP. The
    difference is the content enhancer: the public one has a third 7² branch (dilation 2) and ends in a 7² instead of
    the paper's 3² convolution (685,008 against 88,128 parameters). Besides, the public blocks share one batch norm
    between two convolutions (2,488 fewer), and its transposed convolutions have a bias (384 more).

    Without norm and biases, the network is bias-free in the sense of Mohan et al. (2020, arXiv 1906.05478): with a
    residual head, scaling the noisy image scales the denoised one. It cannot know how strong noise is but from the
    image. Biases let it expect the levels it was trained on: fine texture, which looks like stronger noise, is kept
    better at those, and other levels are what it was not made for.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the noisy image.
        out_channels: Channels of the denoised image.
        filters: (f1, f2, f3, bridge).
        norm: MONAI's norm notation, such as ``"batch"`` or ``("group", {"num_groups": 4})``, or None. A group count
            that does not divide a layer's width is reduced to the largest common divisor.
        act: MONAI's activation notation.
        head: ``"sigmoid"`` gives values in (0, 1), as in the paper. ``"residual"`` predicts what to subtract from the
            noisy image (from its area average at 1/2 and 1/4 size): nothing is clipped, the fresh network is nearly
            an identity, and 16-bit or HU data fit after an affine map. Give it f3 >= 16: a head that ends in a single
            rectified channel could correct in one direction only.
        content_enhancer: Whether there is one.
        multi_scale: Whether ``forward`` returns all three scales or only the full one. The parameters are the same
            either way, so weights pass between both. In eager mode the flag may be set after construction; a scripted
            network keeps the value it was scripted with.
        checkpointing: Gradient checkpointing: in training, only what passes between the blocks is kept, and each block
            is computed a second time in the backward pass. The same gradients in less memory and more time; nothing
            changes in inference.
        bias: Whether the convolutions, but those of one voxel and the transposed ones, have a bias (0 at first).

    Raises:
        ValueError: If an argument does not describe a network, or a residual head has to change the channel count.

    Source: Ghahremani et al., "Adversarial Distortion Learning for Medical Image Denoising", arXiv 2204.14100.
    """

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
        checkpointing: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(spatial_dims, [in_channels, out_channels], filters)
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
        self.encoder = UEncoder(spatial_dims, in_channels, filters, norm, act, bias)
        if content_enhancer:
            self.enhancer = ContentEnhancer(spatial_dims, in_channels, f1, norm, act, bias)
        self.decode3 = DecoderStage(spatial_dims, fb, f3, f3, norm, act, bias)
        self.decode2 = DecoderStage(spatial_dims, f3, f2, f2, norm, act, bias)
        self.decode1 = DecoderStage(spatial_dims, f2, 2 * f1 if content_enhancer else f1, f1, norm, act, bias)
        self.head1 = TransformerHead(spatial_dims, f1, out_channels, 1, norm, act, bias)
        self.head2 = TransformerHead(spatial_dims, f2, out_channels, 2, norm, act, bias)
        self.head3 = TransformerHead(spatial_dims, f3, out_channels, 3, norm, act, bias)
        self.halve = Pool["avg", spatial_dims](2)
        if self.predicts_residual:
            size = RESIDUAL_START_UNNORMALISED if norm is None else RESIDUAL_START
            for transformer in (self.head1, self.head2, self.head3):
                start_near_identity(transformer.project.weight, size)
        # Whole stages and heads rather than the blocks inside them: what they join is as large as what they keep.
        for unit in (*self.encoder.children(), *self.children()):
            if isinstance(unit, Recomputable):
                unit.recomputed = checkpointing

    def forward(self, noisy: Tensor) -> Tensor | list[Tensor]:
        """Denoise.

        Args:
            noisy: (B, in_channels, H, W[, D]), about [0, 1], sizes multiples of 8.

        Returns:
            float32, whatever the precision inside: (B, out_channels, H, W[, D]), or with ``multi_scale`` a list of it
            and the images at 1/2 and 1/4 size.

        Raises:
            ValueError: If a spatial size is no multiple of 8.
        """
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
        """Turn a head's raw values into a denoised image, in float32 even under autocast."""
        if self.predicts_residual:
            return noisy.float() - raw.float()
        return torch.sigmoid(raw.float())
