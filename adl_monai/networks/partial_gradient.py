"""Convolutions that work out gradients for a part of their channels alone: what is held asks for none.

A layer of a network that was grown and held has old channels, which neither learn nor lead to anything that learns.
The gradients of their kernels would be thrown away, and so would those of the features they read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional, grad

from adl_monai.networks.blocks import ConvNd

CONVOLUTIONS = {
    4: (functional.conv2d, grad.conv2d_input, grad.conv2d_weight),
    5: (functional.conv3d, grad.conv3d_input, grad.conv3d_weight),
}
"""By the axes of the features: the convolution, the gradient of its input, that of its weight."""


class Learning(NamedTuple):
    """The channels of a convolution that have something to learn."""

    outputs: slice
    """Channels whose kernels learn."""
    inputs: Sequence[slice]
    """Channels that come from kernels which learn; one run for each of the joined inputs."""


def learn_only(network: nn.Module, learning: Mapping[str, Learning]) -> None:
    """From now on, convolutions of ``network`` give gradients only to the kernels and inputs that learn, 0 to others.

    The features are made by the whole kernels as before.

    Args:
        network: Changed in place.
        learning: By the name of each bias-free convolution that has held channels.
    """
    for name, channels in learning.items():
        layer: Any = network.get_submodule(name)
        layer._conv_forward = partial(_forward, layer, channels)


def _forward(layer: ConvNd, learning: Learning, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    device = features.device.type
    if torch.is_autocast_enabled(device):  # which does not see into the function's backward
        dtype = torch.get_autocast_dtype(device)
        features, weight = features.to(dtype), weight.to(dtype)
    geometry = (layer.stride, layer.padding, layer.dilation)
    result: Tensor = _PartialGradient.apply(features, weight, geometry, learning)  # type: ignore[no-untyped-call]
    return result


class _PartialGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, geometry: Any, learning: Learning) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.geometry, ctx.learning = geometry, learning
        convolve, _, _ = CONVOLUTIONS[features.ndim]
        return convolve(features, weight, None, *geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        features, weight = ctx.saved_tensors
        outputs, inputs = ctx.learning
        _, input_gradient, weight_gradient = CONVOLUTIONS[features.ndim]
        gradient, kernels = gradients[0][:, outputs], weight[outputs]
        of_weight = torch.zeros_like(weight)
        if len(kernels):
            of_weight[outputs] = weight_gradient(features, kernels.shape, gradient, *ctx.geometry)
        of_features = None
        if ctx.needs_input_grad[0]:
            of_features = torch.zeros_like(features)
            heard = torch.cat([kernels[:, run] for run in inputs], dim=1)
            if heard.numel():
                shape = (len(features), heard.shape[1], *features.shape[2:])
                part = input_gradient(shape, heard, gradient, *ctx.geometry)
                for run, values in zip(inputs, part.split([run.stop - run.start for run in inputs], 1), strict=True):
                    of_features[:, run] = values
        return of_features, of_weight, None, None
