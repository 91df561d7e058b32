"""Each option of the inferer does what it says, and so does its default."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from adl_monai.inferers import TiledInferer
from adl_monai.inferers.far_values import HIGHEST
from adl_monai.inferers.rolling import RollingConv
from adl_monai.inferers.tiles import pad_by_reflection, smaller_edge
from adl_monai.inferers.unet_stream import can_roll
from adl_monai.networks import EfficientUNet
from tests.inferers.test_sweep import CPU, some_network


class Seen(nn.Module):
    """An identity that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Tensor] = []

    def forward(self, noisy: Tensor) -> Tensor:
        self.batches.append(noisy)
        return noisy.clone()


def shapes_seen(image: Tensor, **options: Any) -> list[tuple[int, ...]]:
    network = Seen()
    TiledInferer(image.ndim - 2, precision="fp32", **options)(image, network)
    return [tuple(batch.shape) for batch in network.batches]


@pytest.mark.parametrize(("options", "tiles"), [({}, 5), ({"overlap": 0.0}, 4), ({"overlap": 0.5}, 7)])
def test_neighbouring_tiles_have_the_share_in_common_that_was_asked_for(options: dict[str, Any], tiles: int) -> None:
    assert shapes_seen(torch.rand(1, 1, 64, 16), tile=16, **options) == [(1, 1, 16, 16)] * tiles


def test_tiles_go_through_in_batches_of_the_size_asked_for() -> None:
    batches = shapes_seen(torch.rand(1, 1, 64, 16), tile=16, batch_size=3)
    assert [shape[0] for shape in batches] == [3, 2]


def test_each_axis_has_its_own_tile_edge() -> None:
    assert set(shapes_seen(torch.rand(1, 1, 64, 64, 64), tile=(16, 32, 48))) == {(1, 1, 16, 32, 48)}


def test_sizes_are_multiples_of_the_divisor() -> None:
    """Those of the image as those of tiles, the smaller ones too that are tried where memory runs out."""
    assert shapes_seen(torch.rand(1, 1, 20, 12), tile=48, divisor=16) == [(1, 1, 32, 16)]
    assert pad_by_reflection(torch.rand(1, 1, 20, 12), 16).shape == (1, 1, 32, 16)
    with pytest.raises(ValueError, match="multiples of 16"):
        TiledInferer(2, 24, divisor=16)
    assert smaller_edge(112, 16) == 48
    assert smaller_edge(72, 24) == 48
    assert smaller_edge(16, 8) == 16, "too small to be halved"


@pytest.mark.parametrize("progress", [True, False])
@pytest.mark.parametrize("sweeps", [True, False])
def test_a_bar_is_shown_where_it_is_wanted(capsys: pytest.CaptureFixture[str], progress: bool, sweeps: bool) -> None:
    network = some_network(2) if sweeps else nn.Identity()
    with torch.inference_mode():
        TiledInferer(2, 16, precision="fp32", progress=progress)(torch.rand(1, 1, 16, 16), network)
    assert bool(capsys.readouterr().err) is progress


def test_the_network_runs_on_the_device_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """And in its memory. The meta device stands in for a GPU: its tensors have shapes and no values."""
    asked: list[str] = []

    def budget(max_memory: float | None, device: torch.device | None = None) -> float:
        asked.append(str(device))
        return 1e9

    monkeypatch.setattr("adl_monai.inferers.tiled.memory_budget", budget)
    for device, expected in ((None, "cpu"), ("meta", "meta")):
        stream = TiledInferer(2, 16, precision="fp32", device=device)._sweep(some_network(2), CPU).stream
        layer = stream.encode1.first
        assert isinstance(layer, RollingConv)
        assert (stream.device.type, layer.weight.device.type) == (expected, expected)
        assert (layer.fused is None) is (expected != "cpu"), "oneDNN is for CPUs"
    assert asked == ["cpu", "meta"]


def test_tiles_run_there_too_and_are_put_together_where_the_image_is(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def blend(image: Tensor, *_: Any, **named: Any) -> Tensor:
        given.update(named)
        return image.clone()

    monkeypatch.setattr("adl_monai.inferers.tiles.sliding_window_inference", blend)
    TiledInferer(2, 16, device="meta")(torch.rand(1, 1, 16, 16), nn.Identity())
    assert (given["sw_device"].type, given["device"].type) == ("meta", "cpu")
    assert given["roi_weight_map"].device.type == "meta"


def brighten(noisy: Tensor) -> Tensor:
    return 2 * noisy


def test_results_of_tiles_are_held_to_the_range_of_their_own_image() -> None:
    images = torch.rand(2, 1, 16, 16) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    held = TiledInferer(2, 16, precision="fp32")(images, brighten)
    free = TiledInferer(2, 16, precision="fp32", within_range=False)(images, brighten)
    torch.testing.assert_close(free, 2 * images)
    for image, found in zip(images, held, strict=True):
        torch.testing.assert_close(found, (2 * image).clamp(max=image.max()))


def test_results_of_a_sweep_are_held_to_the_range_of_their_own_image() -> None:
    """A batch in memory, and a volume from disk to disk, whose extremes the caller knows."""
    network = some_network(3)
    images = torch.rand(2, 1, 16, 16, 16) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1)
    with torch.inference_mode():
        free = TiledInferer(3, 16, precision="fp32", within_range=False)(images, network)
        held = TiledInferer(3, 16, precision="fp32")(images, network)
    for image, found, expected in zip(images, held, free, strict=True):
        assert expected.max() > image.max()
        assert expected.min() < image.min()
        torch.testing.assert_close(found, expected.clamp(image.min(), image.max()))
    for within_range, expected in ((True, held), (False, free)):
        streamed = torch.full_like(images[:1], torch.nan)

        def read(box: tuple[slice, ...]) -> Tensor:
            return images[:1, :, *box]

        def write(box: tuple[slice, ...], part: Tensor, into: Tensor = streamed) -> None:
            into[:, :, *box] = part

        inferer = TiledInferer(3, 16, precision="fp32", within_range=within_range)
        extremes = float(images[0].min()), float(images[0].max())
        with torch.inference_mode():
            inferer.stream(read, write, (16, 16, 16), network, extremes=extremes)
        torch.testing.assert_close(streamed, expected[:1])


def test_what_is_passed_along_reaches_the_network() -> None:
    def scaled(noisy: Tensor, factor: float, offset: float = 0.0) -> Tensor:
        return noisy * factor + offset

    image = torch.rand(1, 1, 16, 16)
    inferer = TiledInferer(2, 16, precision="fp32", within_range=False)
    torch.testing.assert_close(inferer(image, scaled, 3.0, offset=1.0), 3 * image + 1)
    with pytest.raises(TypeError):  # never left out
        inferer(image, some_network(2), 3.0)


def test_the_precision_asked_for_is_used() -> None:
    image, network = torch.rand(1, 1, 16, 16), nn.Conv2d(1, 1, 3, padding=1)
    dtypes = []
    network.register_forward_hook(lambda _, given, found: dtypes.append(found.dtype))
    swept = some_network(2)
    with torch.inference_mode():
        for precision in ("fp32", "bf16"):
            TiledInferer(2, 16, precision=precision)(image, network)
        assert dtypes == [torch.float32, torch.bfloat16]
        full, low = (TiledInferer(2, 16, precision=one)(image, swept) for one in ("fp32", "bf16"))
    assert not torch.equal(full, low)


def test_mirror_images_are_averaged_in_float32() -> None:
    """The mean of two numbers of bfloat16 is mostly none of them."""
    image = torch.rand(1, 1, 16, 16).bfloat16()
    found = TiledInferer(2, 16, precision="bf16", ensemble=2)(image, lambda noisy: noisy.roll(1, 2).bfloat16())
    both_ways = (image.float().roll(1, 2) + image.float().roll(-1, 2)) / 2
    assert not torch.equal(both_ways, both_ways.bfloat16().float())
    torch.testing.assert_close(found, both_ways)


def test_of_a_pyramid_the_first_image_counts() -> None:
    network = EfficientUNet(2, filters=(8, 8, 8, 8), norm="instance").eval()
    assert not can_roll(network)
    image = torch.rand(1, 1, 16, 16)
    with torch.inference_mode():
        found = TiledInferer(2, 16, precision="fp32", within_range=False)(image, network)
        torch.testing.assert_close(found, network(image)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("highest", [1.0, 100 * HIGHEST])
def test_metadata_comes_along_whatever_the_way(spatial_dims: int, highest: float) -> None:
    """Of volumes slice by slice too, and with values far outside."""
    image = MetaTensor(torch.rand(1, 1, 16, 16, 5), affine=torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0])))
    image[0, 0, 3, 3, 3] = highest
    found = TiledInferer(spatial_dims, 16, precision="fp32")(image, nn.Identity())
    assert isinstance(found, MetaTensor)
    assert torch.equal(found.affine, image.affine)
    torch.testing.assert_close(found.as_tensor(), image.as_tensor(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("percentiles", [None, (0.0, 100.0)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_images_come_out_in_float32(dtype: torch.dtype, percentiles: tuple[float, float] | None) -> None:
    image = torch.rand(1, 1, 16, 16).to(dtype)
    for network in (nn.Identity(), some_network(2)):
        with torch.inference_mode():
            found = TiledInferer(2, 16, precision="fp32", percentiles=percentiles)(image, network)
        assert found.dtype == torch.float32


def test_values_far_outside_come_back_in_float32_too() -> None:
    """Between 32768 and 65536, float16 holds every 32nd number."""
    image = torch.rand(1, 1, 16, 16).half()
    image[0, 0, 3, 3] = 60_000
    assert TiledInferer(2, 16, precision="fp32")(image, nn.Identity())[0, 0, 3, 3] == pytest.approx(60_000, abs=0.1)


def test_what_can_be_streamed_and_what_that_needs() -> None:
    assert TiledInferer(2, 16).can_stream(some_network(2))
    assert not TiledInferer(2, 16, percentiles=(0.5, 99.5)).can_stream(some_network(2)), "they are of the whole image"
    assert TiledInferer(3, 16, ensemble=2).needs_sums
    assert not TiledInferer(3, 16).needs_sums
    assert not TiledInferer(2, 16, ensemble=2).needs_sums, "slices are averaged in memory"
