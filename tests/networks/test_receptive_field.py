"""The margin that a part of an image needs is what its gradients say."""

from __future__ import annotations

import pytest
import torch

from adl_monai.networks import EfficientUNet, receptive_margin


@pytest.mark.parametrize("content_enhancer", [False, True])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_gradients_reach_as_far_as_said_and_no_further(spatial_dims: int, content_enhancer: bool) -> None:
    torch.manual_seed(0)
    network = EfficientUNet(
        spatial_dims,
        filters=(4, 4, 4, 4),
        norm=None,
        act=("leakyrelu", {"negative_slope": 0.5}),
        head="sigmoid",
        content_enhancer=content_enhancer,
        multi_scale=False,
    ).double()
    noisy = torch.rand(1, 1, 144, *[8] * (spatial_dims - 1), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(noisy)[:, :, 64:72].sum(), noisy)
    seen = gradient.abs().flatten(3).sum(-1)[0, 0].nonzero().flatten()
    margin = receptive_margin(network)
    assert (64 - int(seen.min()), int(seen.max()) - 71) in [
        (margin, margin),
        (margin, margin - 1),
        (margin - 1, margin),
    ]


def test_a_wider_view_of_the_content_enhancer_counts() -> None:
    network = EfficientUNet(2, filters=(4, 4, 4, 4), content_enhancer=True)
    plain = receptive_margin(network)
    network.enhancer.far.dilation = (20, 20)
    assert receptive_margin(network) == 3 * 20 + 1 + 2 + 2 > plain  # far, joined, decoder, head
