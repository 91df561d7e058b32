"""The Efficient-UNet over an endless row of planes: the same function as the whole network, exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from adl_monai.compute import channels_last
from adl_monai.inferers.rolling import (
    AXIS,
    Planes,
    Queue,
    RollingBlock,
    RollingConv,
    RollingPair,
    RollingUpsample,
    channels_first,
    join,
    planes_of,
)
from adl_monai.networks import EfficientUNet
from adl_monai.networks.blocks import ContentEnhancer, ConvNd, ResidualBlock, TransformerHead

Node = RollingConv | RollingUpsample | RollingBlock | Queue
NO_NORM = nn.Identity()


def can_roll(network: object) -> bool:
    """Whether a network can run plane by plane: an ``EfficientUNet`` whose norms need no statistics of the image."""
    if type(network) is not EfficientUNet:
        return False
    norms = [m for block in network.modules() for name, m in block.named_children() if name.startswith("norm")]
    return all(_folds(norm) for norm in norms)


class UNetStream:
    """An ``EfficientUNet``, at full scale, that is led along an image.

    The weights are copied once, in the dtype of the convolutions; norms are folded into them. In bfloat16 the noisy
    image goes in as the sum of two bfloat16 images, which keeps 16 bits of it instead of 8: the rounding of the image
    itself is what low precision costs most.

    Args:
        network: For which ``can_roll`` holds.
        dtype: Of the convolutions, None for float32.
        device: Where to run.
        order: For 3D, the axis of the network's kernels that each axis of the planes is: (2, 0, 1) runs along the last
            axis of the volume. None keeps them.
        piece: Planes to compute at once, at most; smaller ones stay in the cache. Deep layers give eight planes at a
            time, and the last push many.
    """

    def __init__(
        self,
        network: EfficientUNet,
        dtype: torch.dtype | None,
        device: torch.device,
        order: Sequence[int] | None = None,
        piece: int = 8,
    ) -> None:
        self.dtype = dtype or torch.float32
        self.device = device
        first_kernel = network.encoder.encode1.conv1.weight
        self.spatial_dims = first_kernel.ndim - 2
        self.order = tuple(order) if order is not None else tuple(range(self.spatial_dims))
        self.layout = channels_last(self.spatial_dims)
        self.splits = self.dtype != torch.float32
        self.residual = network.predicts_residual
        self.piece = max(1, piece)
        encoder = network.encoder
        self.encode1 = self._block(encoder.encode1, of_image=True)
        self.down = [self._block(block) for block in (encoder.encode2, encoder.encode3, encoder.bridge)]
        stages = (network.decode3, network.decode2, network.decode1)
        self.up = [(RollingUpsample(self._kernel(s.upsample.weight)), self._block(s.block)) for s in stages]
        self.skips = [[Queue(), Queue()] for _ in stages]  # from below, and across
        self.enhancer = self._enhancer(network.enhancer) if network.enhances_content else None
        if self.enhancer is not None:
            self.skips[2].append(Queue())
        self.head = self._head(network.head1)
        self.noisy = Queue()

    def push(self, noisy: Planes, last: bool) -> Planes:
        """Take the next planes of the noisy image, return the denoised ones that can be known by now.

        After the last ones, the stream is ready for another image.

        Args:
            noisy: (B, C, n, ...) float32, in-plane sizes multiples of 8; None for none.
            last: No more planes will come; the number of all must be a multiple of 8.

        Returns:
            (B, C, m, ...) float32, the next m planes, or None.
        """
        image = None
        if noisy is not None:
            noisy = planes_of(noisy.to(self.device))
            if self.residual:
                self.noisy.put(noisy)
            image = self._enter(noisy)
        full = self.encode1.push(image, last)
        half = self.down[0].push(full, last)
        quarter = self.down[1].push(half, last)
        below = self.down[2].push(quarter, last)
        if self.enhancer is not None:
            self.skips[2][2].put(self.enhancer.push(image, last))
        below = self._climb(0, below, quarter, last)
        below = self._climb(1, below, half, last)
        raw = self._climb(2, below, full, last)
        if raw is None:
            return None
        if self.residual:
            return channels_first(self.noisy.take(raw.shape[AXIS]) - raw.float())
        return channels_first(torch.sigmoid(raw.float()))

    def _climb(self, stage: int, below: Planes, skip: Planes, last: bool) -> Planes:
        """One stage of the decoder, the last with its head, in pieces."""
        (upsample, block), queues = self.up[stage], self.skips[stage]
        queues[1].put(skip)
        layers = [block, *(self.head if stage == 2 else [])]
        # Climbing too: the last push brings many coarse planes, which would all be large ones at once.
        parts: list[Planes] = [None] if below is None else list(below.split(max(2, self.piece // 2), AXIS))
        results = []
        for index, part in enumerate(parts):
            ends = last and index == len(parts) - 1
            queues[0].put(upsample.push(part, ends))
            for piece, final in self._joined(queues, ends):
                for layer in layers:
                    piece = layer.push(piece, final)
                if piece is not None:
                    results.append(piece)
        return torch.cat(results, AXIS) if len(results) > 1 else results[0] if results else None

    def _joined(self, queues: list[Queue], last: bool) -> Iterator[tuple[Planes, bool]]:
        """What the queues can give together, in pieces, and whether it is the last one."""
        while True:
            piece = join(queues, self.piece)
            final = last and not any(queue.count for queue in queues)
            if piece is not None or final:
                yield piece, final
            if piece is None or final:
                return

    def held_bytes(self) -> int:
        """Bytes of the planes that wait between two pushes."""
        nodes: list[Node] = [self.encode1, *self.down, *self.head, self.noisy]
        nodes += [node for pair in self.up for node in pair] + [queue for queues in self.skips for queue in queues]
        nodes += [self.enhancer] if self.enhancer is not None else []
        return sum(tensor.numel() * tensor.element_size() for node in nodes for tensor in node.tensors())

    def _enter(self, noisy: Tensor) -> Tensor:
        image = noisy.to(self.dtype)
        if self.splits:
            image = torch.cat([image, (noisy - image.float()).to(self.dtype)], -1)
        return image

    def _kernel(self, weight: Tensor, of_image: bool = False) -> Tensor:
        """(out, in, ...) in our axis order, dtype and layout."""
        kernel = weight.detach().permute(0, 1, *(2 + axis for axis in self.order))
        if of_image and self.splits:
            kernel = torch.cat([kernel, kernel], 1)
        return kernel.to(self.device, self.dtype, memory_format=self.layout, copy=True)

    def _folded(
        self, weight: Tensor, bias: Tensor | None, norm: nn.Module, of_image: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Kernel and bias of a convolution with the norm behind it."""
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            assert norm.running_var is not None
            assert norm.running_mean is not None
            scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
            mean = norm.running_mean if bias is None else norm.running_mean - bias
            weight, bias = weight * scale.view(-1, *(1,) * (weight.ndim - 1)), (norm.bias - mean * scale).detach()
        return self._kernel(weight, of_image), None if bias is None else bias.to(self.device, self.dtype, copy=True)

    def _conv(self, conv: ConvNd, norm: nn.Module, act: nn.Module | None = None, of_image: bool = False) -> RollingConv:
        kernel, bias = self._folded(conv.weight, conv.bias, norm, of_image)
        return RollingConv(kernel, bias, conv.stride[0], conv.dilation[0], act)

    def _block(self, block: ResidualBlock, of_image: bool = False) -> RollingBlock:
        return RollingBlock(
            self._conv(block.conv1, block.norm1, block.act1, of_image),
            self._conv(block.conv2, block.norm2),
            self._conv(block.shortcut, NO_NORM, of_image=of_image),
            in_place(block.act2),
        )

    def _head(self, head: TransformerHead) -> list[RollingBlock | RollingConv]:
        return [*[self._block(block) for block in head.blocks], self._conv(head.project, NO_NORM)]  # type: ignore[arg-type]

    def _enhancer(self, enhancer: ContentEnhancer) -> RollingBlock:
        # The norm lies behind the joined convolutions: each takes its share of it.
        convs = (enhancer.near, enhancer.far)
        shifts = [conv.bias for conv in convs if conv.bias is not None]
        bias = torch.cat(shifts) if shifts else None
        kernels, biases = self._folded(torch.cat([conv.weight for conv in convs]), bias, enhancer.norm1, of_image=True)
        shares = (None, None) if biases is None else biases.chunk(2)
        near, far = (
            RollingConv(kernel.clone(memory_format=self.layout), share, 1, conv.dilation[0], enhancer.act1)
            for conv, kernel, share in zip(convs, kernels.chunk(2), shares, strict=True)
        )
        return RollingBlock(
            RollingPair(near, far),
            self._conv(enhancer.join, enhancer.norm2),
            self._conv(enhancer.shortcut, NO_NORM, of_image=True),
            in_place(enhancer.act2),
        )


def in_place(act: nn.Module) -> nn.Module:
    """The same activation, written over its input."""
    if isinstance(act, nn.LeakyReLU):
        return nn.LeakyReLU(act.negative_slope, inplace=True)
    return nn.ReLU(inplace=True) if isinstance(act, nn.ReLU) else act


def _folds(norm: nn.Module) -> bool:
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return not norm.training and norm.track_running_stats and norm.affine
    return isinstance(norm, nn.Identity)
