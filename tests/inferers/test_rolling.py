"""Layers that roll give what layers give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adl_monai.inferers.rolling import Queue, RollingConv, RollingUpsample, channels_first, planes_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("planes", [1, 3, 8])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (1, 2, 1), (7, 1, 4), (1, 1, 1)])
def test_a_rolling_convolution_is_the_convolution(kernel: int, stride: int, dilation: int, planes: int) -> None:
    conv = nn.Conv2d(2, 3, kernel, stride, dilation * (kernel - 1) // 2, dilation, bias=True).requires_grad_(False)
    image = torch.rand(1, 2, 32, 10)
    rolling = RollingConv(conv.weight, conv.bias, stride, dilation, nn.LeakyReLU(0.2))
    expected = nn.functional.leaky_relu(conv(image), 0.2)
    torch.testing.assert_close(rolled(rolling, image, planes), expected)
    rolling.fused = None  # as on a GPU
    torch.testing.assert_close(rolled(rolling, image, planes), expected)


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("planes", [1, 2, 5])
def test_a_stride_starts_anew_with_each_image(stride: int, planes: int) -> None:
    """Whether or not it stepped over the end of the one before."""
    conv = nn.Conv2d(2, 3, 1, stride, bias=False).requires_grad_(False)
    rolling = RollingConv(conv.weight, None, stride)
    for length in (7, 10, 9):
        image = torch.rand(1, 2, length, 6)
        torch.testing.assert_close(rolled(rolling, image, planes), conv(image))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("planes", [1, 2, 5, 16])
def test_a_rolling_upsampling_is_the_transposed_convolution(planes: int, spatial_dims: int) -> None:
    layer = (nn.ConvTranspose2d, nn.ConvTranspose3d)[spatial_dims - 2](2, 3, 3, 2, 1, 1, bias=False)
    layer.requires_grad_(False)
    image = torch.rand(2, 2, 16, 4, 5)[(..., *[0] * (3 - spatial_dims))]
    rolling = RollingUpsample(layer.weight)
    torch.testing.assert_close(rolled(rolling, image, planes), layer(image))
    rolling.direct = False  # as on a GPU
    torch.testing.assert_close(rolled(rolling, image, planes), layer(image))


def test_a_cpu_without_bfloat16_rolls_in_bfloat16_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowly; oneDNN called directly refuses it there."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    conv = nn.Conv3d(2, 3, 3, padding=1, bias=False).bfloat16().requires_grad_(False)
    image = torch.rand(1, 2, 6, 5, 4).bfloat16()
    rolling = RollingConv(conv.weight, None, act=nn.ReLU())
    assert rolling.fused is None
    torch.testing.assert_close(rolled(rolling, image, 2), conv(image).relu(), rtol=0.02, atol=0.02)


def rolled(layer: RollingConv | RollingUpsample, image: Tensor, planes: int) -> Tensor:
    length = image.shape[2]
    parts = [
        layer.push(planes_of(image[:, :, start : start + planes]), start + planes >= length)
        for start in range(0, length, planes)
    ]
    return torch.cat([channels_first(part) for part in parts if part is not None], 2)


def test_a_queue_gives_planes_in_their_order() -> None:
    queue = Queue()
    planes = torch.arange(10.0).view(1, 10, 1, 1)
    for start, stop in ((0, 3), (3, 4), (4, 10)):
        queue.put(planes[:, start:stop])
    queue.put(None)
    assert queue.count == 10
    assert torch.equal(torch.cat([queue.take(n) for n in (1, 4, 3, 2)], 1), planes)
    assert queue.count == 0
    assert queue.tensors() == [], "an empty rest would hold the memory of what was taken"
