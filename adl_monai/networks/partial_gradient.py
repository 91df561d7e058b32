"""Convolutions that work out gradients for a part of their output channels alone: what is held asks for none.

A layer of a network that was grown and held has old channels, which neither learn nor lead to anything that learns.
The gradients of their kernels would be thrown away, and so would what they send back to the features they read.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional, grad

from adl_monai.networks.blocks import ConvNd

CONVOLUTIONS = {
    4: (functional.conv2d, grad.conv2d_input, grad.conv2d_weight),
    5: (functional.conv3d, grad.conv3d_input, grad.conv3d_weight),
}
"""By the axes of the features: the convolution, the gradient of its input, that of its weight."""


def learn_only(network: nn.Module, learning: Mapping[str, slice]) -> None:
    """From now on, the other output channels of convolutions of ``network`` send no gradient back.

    Their kernels get gradient 0, and so does what they alone read. The features are made by all kernels as before.

    Args:
        network: Changed in place.
        learning: By the name of each convolution that has held channels: those of its output that learn.
    """
    for name, channels in learning.items():
        layer: Any = network.get_submodule(name)
        layer._conv_forward = partial(_forward, layer, channels)


def _forward(layer: ConvNd, learning: slice, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    device = features.device.type
    if torch.is_autocast_enabled(device):  # which does not see into the function's backward
        dtype = torch.get_autocast_dtype(device)
        features, weight, bias = features.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    geometry = (layer.stride, layer.padding, layer.dilation)
    result: Tensor = _PartialGradient.apply(features, weight, bias, geometry, learning)  # type: ignore[no-untyped-call]
    return result


class _PartialGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any, learning: slice
    ) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.geometry, ctx.learning = geometry, learning
        convolve, _, _ = CONVOLUTIONS[features.ndim]
        return convolve(features, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None, None]:
        features, weight = ctx.saved_tensors
        _, input_gradient, weight_gradient = CONVOLUTIONS[features.ndim]
        gradient, kernels = gradients[0][:, ctx.learning], weight[ctx.learning]
        of_features, of_weight, of_bias = None, torch.zeros_like(weight), None
        if len(kernels):
            of_weight[ctx.learning] = weight_gradient(features, kernels.shape, gradient, *ctx.geometry)
        if ctx.needs_input_grad[2]:
            of_bias = weight.new_zeros(len(weight))
            of_bias[ctx.learning] = gradient.sum((0, *range(2, gradient.ndim)))
        if ctx.needs_input_grad[0]:
            # To held channels too, of which the convolution before makes no use: cheaper than to pick the others.
            of_features = (
                input_gradient(features.shape, kernels, gradient, *ctx.geometry)
                if len(kernels)
                else torch.zeros_like(features)
            )
        return of_features, of_weight, of_bias, None, None
