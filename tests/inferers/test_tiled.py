"""Any size in, the same size out; tiles blend into what the whole image would give."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from torch import Tensor, nn

from adl_monai.errors import ModelError, UsageError
from adl_monai.inferers import TiledInferer
from adl_monai.inferers.ensemble import mean_over_flips, mirror_images
from adl_monai.inferers.tiles import pad_by_reflection
from adl_monai.networks import EfficientUNet


class Smooth(nn.Module):
    """A 3x3[x3] mean: a network with a known, small receptive field. Refuses sizes that are not multiples of 8."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self.pool = (nn.AvgPool2d if spatial_dims == 2 else nn.AvgPool3d)(3, 1, 1, count_include_pad=False)

    def forward(self, noisy: Tensor) -> Tensor:
        assert all(size % 8 == 0 for size in noisy.shape[2:]), noisy.shape
        return self.pool(noisy)


@pytest.mark.parametrize("shape", [(37, 61, 23), (8, 8, 8), (1, 40, 5), (64, 3, 33)])
def test_an_identity_network_returns_the_image(shape: tuple[int, ...]) -> None:
    image = torch.rand(2, 1, *shape)
    denoised = TiledInferer(3, 16, precision="fp32")(image, nn.Identity())
    assert denoised.shape == image.shape
    torch.testing.assert_close(denoised, image, rtol=1e-5, atol=1e-6)


def test_a_2d_image_of_odd_size() -> None:
    image = torch.rand(1, 1, 37, 61)
    torch.testing.assert_close(TiledInferer(2, 32)(image, nn.Identity()), image, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_tiles_agree_with_the_whole_image(overlap: float) -> None:
    image = torch.rand(1, 1, 45, 40, 31)
    network = Smooth(3)
    whole = TiledInferer(3, 64, precision="fp32")(image, network)
    tiled = TiledInferer(3, 16, overlap, batch_size=3, precision="fp32")(image, network)
    # The outermost voxels of a tile miss their neighbours, but weigh next to nothing.
    assert (tiled - whole).abs().max() < 5e-3
    assert (tiled - whole).abs().mean() < 1e-4


def test_a_2d_network_runs_on_each_slice() -> None:
    volume = torch.rand(2, 1, 24, 19, 5)
    inferer, network = TiledInferer(2, 16, precision="fp32"), Smooth(2)
    denoised = inferer(volume, network)
    for index in range(volume.shape[-1]):
        torch.testing.assert_close(denoised[..., index], inferer(volume[..., index], network))


def test_a_3d_network_refuses_a_2d_image() -> None:
    with pytest.raises(ModelError, match="2D model"):
        TiledInferer(3, 16)(torch.rand(1, 1, 16, 16), nn.Identity())


def test_metadata_comes_along() -> None:
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0]))
    image = MetaTensor(torch.rand(1, 1, 9, 10, 11), affine=affine)
    denoised = TiledInferer(3, 16)(image, nn.Identity())
    assert isinstance(denoised, MetaTensor)
    assert torch.equal(denoised.affine, image.affine)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_each_image_of_a_batch_keeps_its_metadata(spatial_dims: int) -> None:
    volumes = [
        MetaTensor(
            torch.rand(1, 16, 16, 8),
            affine=torch.diag(torch.tensor([spacing, 1.0, 1.0, 1.0])),
            meta={"name": f"scan{spacing}", "intensity_offset": spacing, "original_channel_dim": float("nan")},
            applied_operations=[{"class": "Fake", "id": spacing}],
        )
        for spacing in (2.0, 3.0)
    ]
    denoised = TiledInferer(spatial_dims, 16, precision="fp32", percentiles=(0.5, 99.5))(
        list_data_collate(volumes), nn.Identity()
    )
    for before, after in zip(volumes, decollate_batch(denoised), strict=True):
        assert isinstance(after, MetaTensor)
        torch.testing.assert_close(after.as_tensor(), before.as_tensor())
        torch.testing.assert_close(after.affine, before.affine)
        assert after.meta["name"] == before.meta["name"]
        assert after.meta["intensity_offset"] == before.meta["intensity_offset"]
        assert after.applied_operations == before.applied_operations


@pytest.mark.parametrize("norm", [None, "batch", ("group", {"num_groups": 4}), "instance"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("fused", [True, False])
def test_float32_is_kept_within_a_callers_autocast(
    norm: object, spatial_dims: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused:  # as where oneDNN does not fuse
        monkeypatch.setattr("adl_monai.inferers.rolling.fuses", lambda weight: False)
    network = EfficientUNet(spatial_dims, filters=(8, 8, 8, 8), norm=norm, multi_scale=False).eval()
    inferer = TiledInferer(spatial_dims, 16, precision="fp32")
    image = torch.rand(1, 1, *(24, 16, 16)[:spatial_dims])
    with torch.inference_mode():
        expected = inferer(image, network)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(inferer(image, network), expected)


def test_blending_is_in_float32_under_low_precision() -> None:
    denoised = TiledInferer(3, 16, precision="bf16")(torch.rand(1, 1, 20, 20, 20), nn.Conv3d(1, 1, 1))
    assert denoised.dtype == torch.float32


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
def test_padding_mirrors_as_numpy_does(size: int) -> None:
    image = torch.rand(1, 1, size, 4)
    padded = pad_by_reflection(image, 8)
    expected = np.pad(image.numpy(), [(0, 0), (0, 0), (0, -size % 8), (0, 4)], mode="reflect")
    np.testing.assert_array_equal(padded.numpy(), expected)


@pytest.mark.parametrize(("tile", "overlap"), [(12, 0.25), ((16, 16), 0.25), (0, 0.25), (16, 1.0)])
def test_impossible_tiles_are_refused(tile: object, overlap: float) -> None:
    with pytest.raises(ValueError, match=r"tile|overlap"):
        TiledInferer(3, tile, overlap)


class Lean(nn.Module):
    """Moves the image by one voxel along the first axis: a network that favours one direction."""

    def forward(self, noisy: Tensor) -> Tensor:
        return noisy.roll(1, 2)


@pytest.mark.parametrize(("spatial_dims", "count"), [(2, 2), (2, 4), (2, 8), (3, 2), (3, 4), (3, 8)])
def test_the_ensemble_averages_over_mirror_images(spatial_dims: int, count: int) -> None:
    image = torch.rand(1, 1, *[8] * spatial_dims)
    calls = []

    def network(noisy: Tensor) -> Tensor:
        calls.append(noisy)
        return Lean()(noisy)

    both_ways = (image.roll(1, 2) + image.roll(-1, 2)) / 2
    torch.testing.assert_close(mean_over_flips(network, image, count), both_ways)
    assert len(calls) == min(count, 2**spatial_dims)
    assert len({call.numpy().tobytes() for call in calls}) == len(calls)  # each a different one
    inferer = TiledInferer(spatial_dims, 8, precision="fp32", ensemble=count)
    torch.testing.assert_close(inferer(image, Lean()), both_ways)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_ensemble_sees_each_axis_as_often_mirrored_as_not(axis: int) -> None:
    for count in (2, 4, 8):
        images = mirror_images(count, 3)
        assert len(images) == count
        assert sum(axis in flipped for flipped in images) == count // 2


def test_the_size_of_an_ensemble_is_checked_and_the_earlier_yes_or_no_is_understood() -> None:
    for wrong in (0, 3, 16, -1):
        with pytest.raises(UsageError, match="1, 2, 4 or 8"):
            TiledInferer(3, 8, ensemble=wrong)
    assert TiledInferer(3, 8, ensemble=False).ensemble == 1
    assert TiledInferer(3, 8, ensemble=True).ensemble == 8
    image = torch.rand(1, 1, 8, 8, 8)
    torch.testing.assert_close(TiledInferer(3, 8, precision="fp32")(image, Lean()), image.roll(1, 2))


def test_percentiles_give_each_image_its_own_scale_and_take_it_back() -> None:
    seen = []

    def network(noisy: Tensor) -> Tensor:
        seen.append(noisy.clone())
        return noisy

    images = torch.rand(2, 1, 16, 16, 16) * torch.tensor([3.0, 0.1]).view(2, 1, 1, 1, 1) - 1
    images[1] -= 5
    denoised = TiledInferer(3, 16, precision="fp32", percentiles=(0.0, 100.0))(images, network)
    torch.testing.assert_close(denoised, images, rtol=1e-5, atol=1e-5)
    for tile in torch.cat(seen):
        assert (tile.min().item(), tile.max().item()) == pytest.approx((0, 1), abs=1e-5)
    flat = torch.full((1, 1, 16, 16, 16), 7.0)
    torch.testing.assert_close(TiledInferer(3, 16, percentiles=(0.5, 99.5))(flat, network), flat)


def test_smaller_tiles_where_memory_runs_out(caplog: pytest.LogCaptureFixture) -> None:
    sizes: list[int] = []

    def hungry(noisy: Tensor) -> Tensor:
        sizes.append(noisy.shape[2])
        if noisy.shape[2] > 40:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return noisy

    image = torch.rand(1, 1, 100, 96, 30)
    denoised = TiledInferer(3, 96, precision="fp32")(image, hungry)
    torch.testing.assert_close(denoised, image, rtol=1e-5, atol=1e-6)
    assert list(dict.fromkeys(sizes)) == [96, 48, 32]
    assert "trying again with tiles of 48x48x32" in caplog.text


def test_no_tile_is_small_enough_or_the_error_another() -> None:
    tries: list[int] = []

    def fail(text: str) -> Callable[[Tensor], Tensor]:
        def network(noisy: Tensor) -> Tensor:
            tries.append(noisy.shape[2])
            raise RuntimeError(text)

        return network

    for text, expected in (("CUDA out of memory", [64, 32]), ("mat1 and mat2 shapes cannot be multiplied", [64])):
        tries.clear()
        with pytest.raises(RuntimeError, match=text):
            TiledInferer(3, 64, precision="fp32")(torch.rand(1, 1, 64, 64, 64), fail(text))
        assert tries == expected
