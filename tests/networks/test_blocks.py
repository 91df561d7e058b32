"""The building blocks: their shapes, their start, and that each norm is a layer of its own."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from adl_monai.networks.backbone import DecoderStage
from adl_monai.networks.blocks import ContentEnhancer, ResidualBlock, TransformerHead, conv, norm_layer

GROUP = ("group", {"num_groups": 4})


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_residual_block_changes_channels_and_size(spatial_dims: int, stride: int) -> None:
    sizes = (8, 12, 6)[:spatial_dims]
    features = ResidualBlock(spatial_dims, 3, 5, stride=stride)(torch.randn(2, 3, *sizes))
    assert features.shape == (2, 5, *(size // stride for size in sizes))
    assert features.min() >= 0


def test_residual_block_is_the_figure() -> None:
    block = ResidualBlock(2, 3, 4, act=("leakyrelu", {"negative_slope": 0.1}))
    features = torch.randn(2, 3, 8, 8)
    hidden = block.norm1(block.conv1(features))
    hidden = block.norm2(block.conv2(torch.where(hidden > 0, hidden, 0.1 * hidden)))
    total = hidden + torch.nn.functional.conv2d(features, block.shortcut.weight)
    torch.testing.assert_close(block(features), torch.where(total > 0, total, 0.1 * total))


def test_content_enhancer_is_the_figure() -> None:
    enhancer = ContentEnhancer(2, 1, 4)
    noisy = torch.randn(2, 1, 8, 8)
    near = nn.functional.conv2d(noisy, enhancer.near.weight, padding=3)
    far = nn.functional.conv2d(noisy, enhancer.far.weight, padding=12, dilation=4)
    hidden = enhancer.norm1(torch.cat([near, far], 1)).relu()
    hidden = enhancer.norm2(nn.functional.conv2d(hidden, enhancer.join.weight, padding=1))
    shortcut = nn.functional.conv2d(noisy, enhancer.shortcut.weight)
    torch.testing.assert_close(enhancer(noisy), (hidden + shortcut).relu())


@pytest.mark.parametrize("unit", [ResidualBlock(2, 4, 4), ContentEnhancer(2, 1, 4)])
def test_each_norm_is_a_layer_of_its_own(unit: nn.Module) -> None:
    norms = [module for module in unit.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 2
    assert norms[0] is not norms[1]


@pytest.mark.parametrize("norm", ["batch", GROUP, "instance", None])
@pytest.mark.parametrize("unit", [ResidualBlock, ContentEnhancer])
def test_no_convolution_has_a_bias(unit: type[nn.Module], norm: object) -> None:
    convolutions = [module for module in unit(3, 2, 4, norm=norm).modules() if isinstance(module, nn.Conv3d)]
    assert len(convolutions) >= 3
    assert all(convolution.bias is None for convolution in convolutions)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_head_halves_its_channels_but_keeps_one(spatial_dims: int) -> None:
    head = TransformerHead(spatial_dims, 5, 2, depth=4, norm=GROUP)
    assert [block.conv1.out_channels for block in head.blocks] == [2, 1, 1, 1]
    sizes = (4, 6, 8)[:spatial_dims]
    assert head(torch.randn(2, 5, *sizes)).shape == (2, 2, *sizes)


def test_head_gives_raw_values() -> None:
    raw = TransformerHead(2, 8, 1, depth=1)(50 * torch.randn(2, 8, 16, 16))
    assert raw.abs().max() > 1


@pytest.mark.parametrize(("asked", "channels", "given"), [(4, 8, 4), (8, 20, 4), (4, 6, 2), (4, 1, 1)])
def test_group_norm_adapts_to_narrow_layers(asked: int, channels: int, given: int) -> None:
    layer = norm_layer(3, channels, ("group", {"num_groups": asked}))
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == given


def test_group_norm_without_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="num_groups"):
        norm_layer(2, 8, "group")


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_content_enhancer_sees_thirteen_voxels_around(spatial_dims: int) -> None:
    enhancer = ContentEnhancer(spatial_dims, 1, 3, norm=None, act="prelu")
    noisy = torch.zeros(1, 1, *(33, 29, 29)[:spatial_dims], requires_grad=True)
    with torch.no_grad():
        noisy.normal_()
    centre = (slice(None), slice(None), *(size // 2 for size in noisy.shape[2:]))
    enhancer(noisy)[centre].sum().backward()
    reached = noisy.grad.nonzero()[:, 2:] - torch.tensor([size // 2 for size in noisy.shape[2:]])
    # 12 of the 7³ kernel with dilation 4, 1 of the 3³ kernel behind it.
    assert reached.amax(0).tolist() == [13] * spatial_dims
    assert reached.amin(0).tolist() == [-13] * spatial_dims


def test_deep_stack_without_norm_neither_dies_nor_explodes() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        stack = nn.Sequential(*(ResidualBlock(2, 16, 16, norm=None) for _ in range(12)))
        features = torch.rand(1, 16, 16, 16)
        grown = stack(features).square().mean() / features.square().mean()
        assert 0.2 < grown < 20


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_signals_keep_their_size_where_channels_change_without_norm(spatial_dims: int) -> None:
    features = torch.randn(1, 64, *(16,) * spatial_dims).relu()
    for unit in (ResidualBlock(spatial_dims, 64, 48, norm=None), ContentEnhancer(spatial_dims, 64, 48, norm=None)):
        assert 0.5 < unit(features).square().mean() / features.square().mean() < 2
    upsample = DecoderStage(spatial_dims, 64, 1, 48, norm=None, act="relu").upsample
    assert 0.7 < upsample(features).square().mean() / features.square().mean() < 1.4


def test_narrow_heads_without_norm_start_alive() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        head = TransformerHead(2, 8, 1, depth=3, norm=None)
        assert head(torch.rand(1, 8, 16, 16)).count_nonzero() > 0


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 7, 8, 12])
def test_gradients_of_narrow_blocks_are_right(channels: int) -> None:
    """On CPUs without AVX-512 they were not, and the process crashed; repeated, as it depends on the memory around."""
    torch.manual_seed(0)
    block = ResidualBlock(2, channels, 6, stride=2, norm=None).to(memory_format=torch.channels_last)
    exact = copy.deepcopy(block).double()
    features = torch.randn(4, channels, 16, 18)
    (exact(features.double()) ** 2).mean().backward()
    for _ in range(30):
        block.zero_grad()
        (block(features.contiguous(memory_format=torch.channels_last)) ** 2).mean().backward()
        for weight, expected in zip(block.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(weight.grad, expected.grad, rtol=1e-3, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("channels", [1, 12, 15, 16])
def test_gradients_in_bfloat16_leave_the_memory_alone(channels: int) -> None:
    """With two threads and fewer than 16 channels, they crashed the process on CPUs with AVX512-BF16."""
    code = f"""
import torch
from adl_monai.networks.blocks import conv

torch.set_num_threads(2)
for _ in range(12):
    layer = conv(2, {channels}, 16, 1, stride=2).to(torch.bfloat16, memory_format=torch.channels_last)
    image = torch.rand(1, {channels}, 24, 24, dtype=torch.bfloat16)
    layer(image.contiguous(memory_format=torch.channels_last)).sum().backward()
    around = [torch.rand(97 * size + 5) for size in range(40)]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_thinning_is_the_strided_convolution() -> None:
    narrow = conv(2, 3, 5, 1, stride=2)
    image = torch.rand(2, 3, 9, 12)
    torch.testing.assert_close(narrow(image), nn.functional.conv2d(image, narrow.weight, stride=2))
    assert type(narrow) is not nn.Conv2d
    assert type(conv(2, 16, 5, 1, stride=2)) is nn.Conv2d
