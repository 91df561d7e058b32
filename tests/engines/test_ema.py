"""The average of the denoiser's weights: how fast it follows, and what it copies."""

from __future__ import annotations

import pytest
import torch

from adl_monai.engines import EMA
from adl_monai.networks import EfficientUNet


@pytest.mark.parametrize("decay", [0.2, 0.999])
def test_it_keeps_the_share_that_is_said(decay: float) -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    average = EMA(network, decay)
    expected = 0.0
    for count, value in enumerate([2.0, -1.0, 4.0, 8.0, -3.0]):
        torch.nn.init.constant_(network.weight, value)
        average.update_parameters(network)
        keep = min(decay, (1 + count) / (10 + count)) if count else 0  # the first is taken as it is
        expected = keep * expected + (1 - keep) * value
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-6)


def test_statistics_are_those_of_the_network_and_stay_so_in_use() -> None:
    network = EfficientUNet(2, filters=(4, 4, 4, 4))
    average = EMA(network)
    for _ in range(3):
        network(torch.rand(2, 1, 16, 16))
        average.update_parameters(network)
    assert isinstance(average.module(torch.rand(2, 1, 16, 16)), torch.Tensor)
    buffers = dict(network.named_buffers())
    for name, value in average.module.named_buffers():
        assert torch.equal(value, buffers[name]), name


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        EMA(torch.nn.Linear(1, 1), decay)
