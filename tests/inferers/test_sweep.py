"""Swept over an image piece by piece, a network gives what it gives on the whole image at once."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from adl_monai.inferers import TiledInferer as Inferer
from adl_monai.inferers.rolling import RollingUpsample, planes_of
from adl_monai.inferers.sweep import SAFETY, Sweep, mirror
from adl_monai.inferers.tiles import pad_by_reflection
from adl_monai.inferers.unet_stream import UNetStream, can_roll
from adl_monai.networks import EfficientUNet

CPU = torch.device("cpu")

# These networks are no denoisers: most of what they give is out of the image's range.
TiledInferer = partial(Inferer, within_range=False)


def some_network(spatial_dims: int, paper: bool = False) -> EfficientUNet:
    """Random weights that answer strongly, and norms with statistics of their own."""
    torch.manual_seed(1)
    network = EfficientUNet(
        spatial_dims,
        filters=(8, 8, 16, 16),
        norm="batch" if paper else None,
        act="relu" if paper else ("leakyrelu", {"negative_slope": 0.1}),
        head="sigmoid" if paper else "residual",
        content_enhancer=paper,
        multi_scale=False,
    ).eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.3, 1.5)
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, std=0.2)
    nn.init.normal_(network.head1.project.weight)
    return network


def whole(network: EfficientUNet, image: Tensor) -> Tensor:
    padded = pad_by_reflection(image, 8)
    with torch.inference_mode():
        denoised = network(padded)
    return denoised[(..., *[slice(size) for size in image.shape[2:]])]


def assert_same(denoised: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    """Up to the rounding of float32, in units of what the network changes and makes."""
    scale = float(expected.std())
    assert float((denoised - expected).abs().max()) < tolerance * max(scale, float(expected.abs().max()))
    assert scale > 1e-3, "the network's answer must not be flat"


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 24, 17, 41), (2, 1, 8, 8, 8), (1, 1, 5, 19, 3), (1, 1, 16, 24, 100)])
def test_a_volume_is_denoised_as_in_one_piece(shape: tuple[int, ...], paper: bool) -> None:
    network, image = some_network(3, paper), torch.rand(shape)
    with torch.inference_mode():
        assert_same(TiledInferer(3, 32, precision="fp32")(image, network), whole(network, image))


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 37, 61), (3, 1, 130, 24), (1, 1, 1, 9)])
def test_an_image_is_denoised_as_in_one_piece(shape: tuple[int, ...], paper: bool) -> None:
    network, image = some_network(2, paper), torch.rand(shape)
    with torch.inference_mode():
        assert_same(TiledInferer(2, 32, precision="fp32")(image, network), whole(network, image))


@pytest.mark.parametrize("planes", [1, 2, 3, 7, 16, 100])
def test_pieces_of_any_length_and_two_images_one_after_the_other(planes: int) -> None:
    network = some_network(3)
    stream = UNetStream(network, None, CPU, piece=planes)
    for length in (40, 56):
        image = torch.rand(1, 1, length, 16, 8)
        parts = [
            stream.push(image[:, :, start : start + planes], start + planes >= length)
            for start in range(0, length, planes)
        ]
        assert_same(torch.cat([part for part in parts if part is not None], 2), whole(network, image))


@pytest.mark.parametrize(
    ("spatial_dims", "shape", "most_pixels"),
    [(3, (150, 99, 21), 96 * 104), (3, (230, 30, 16), 96 * 32), (3, (101, 203, 9), 88 * 88), (2, (40, 300), 120)],
)
def test_columns_leave_no_seam(spatial_dims: int, shape: tuple[int, ...], most_pixels: int) -> None:
    network, image = some_network(spatial_dims), torch.rand(1, 1, *shape)
    with torch.inference_mode():
        sweep = Sweep(network, None, CPU, math.inf)
        sweep.most_pixels = most_pixels
        assert len(sweep.columns(shape)) > 1
        denoised = torch.full_like(image, torch.nan)
        counts = torch.zeros_like(image)

        def write(box: tuple[slice, ...], part: Tensor) -> None:
            denoised[:, :, *box] = part
            counts[:, :, *box] += 1

        sweep(lambda box: image[:, :, *box], write, shape)
        assert (counts == 1).all()
        assert_same(denoised, whole(network, image))


def test_a_halo_too_small_would_be_seen() -> None:
    network, image = some_network(3), torch.rand(1, 1, 104, 16, 16)
    with torch.inference_mode():
        sweep = Sweep(network, None, CPU, math.inf)
        sweep.most_pixels, sweep.halo = 90 * 16, 16
        denoised = torch.empty_like(image)

        def write(box: tuple[slice, ...], part: Tensor) -> None:
            denoised[:, :, *box] = part

        sweep(lambda box: image[:, :, *box], write, (104, 16, 16))
        with pytest.raises(AssertionError):
            assert_same(denoised, whole(network, image))


def test_bfloat16_stays_close_and_keeps_the_image_itself_exact() -> None:
    network, image = some_network(3), torch.rand(1, 1, 24, 24, 24) + 100
    nn.init.zeros_(network.head1.project.weight)  # what is left is the noisy image
    with torch.inference_mode():
        assert torch.equal(TiledInferer(3, 32, precision="bf16")(image, network), image)
        nn.init.normal_(network.head1.project.weight)
        image -= 100
        close = TiledInferer(3, 32, precision="bf16")(image, network)
        expected = whole(network, image)
        assert close.dtype == torch.float32
        assert float((close - expected).std() / (expected - image).std()) < 0.02


def test_bfloat16_sees_sixteen_bits_of_the_image() -> None:
    """A step of 1/1000 at 1, which bfloat16 itself cannot hold, reaches the features."""
    network = some_network(2)
    stream = UNetStream(network, torch.bfloat16, CPU)
    image = torch.tensor([1.0, 1.001]).view(1, 1, 1, 2)
    assert image.bfloat16().unique().numel() == 1
    entered = stream._enter(planes_of(image)).float().sum(-1)
    torch.testing.assert_close(entered.flatten(), image.flatten(), rtol=0, atol=1e-5)
    kernel = stream.encode1.first.weight
    assert kernel.shape[1] == 2
    assert torch.equal(kernel[:, 0], kernel[:, 1])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_what_waits_is_counted(spatial_dims: int) -> None:
    """The estimate for a column against what the stream of a real one holds."""
    network = some_network(spatial_dims)
    with torch.inference_mode():
        sweep = Sweep(network, None, CPU, math.inf)
        image = torch.rand(1, 1, 160, *[32] * (spatial_dims - 1))
        held = 0
        for start in range(0, 160, 8):
            sweep.stream.push(image[:, :, start : start + 8], start == 152)
            held = max(held, sweep.stream.held_bytes())
        area = 32 ** (spatial_dims - 1)
        assert held <= sweep.bytes_per_pixel * area <= 4 * held
        assert sweep.stream.held_bytes() == 0


def test_networks_that_need_the_whole_image_are_left_to_tiles() -> None:
    assert can_roll(some_network(3))
    assert can_roll(some_network(2, paper=True))
    assert not can_roll(some_network(2, paper=True).train())
    assert not can_roll(EfficientUNet(3, filters=(8, 8, 8, 8), norm=("group", {"num_groups": 4})).eval())
    assert not can_roll(EfficientUNet(3, filters=(8, 8, 8, 8), norm="instance").eval())
    assert not can_roll(nn.Identity())
    inferer = TiledInferer(3, 16, precision="fp32")
    grouped = EfficientUNet(3, filters=(8, 8, 8, 8), norm=("group", {"num_groups": 4}), multi_scale=False).eval()
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(inferer(image, grouped), grouped(image), rtol=1e-4, atol=1e-5)
    assert not inferer.can_stream(grouped)


class SumsInMemory:
    """Whatever is read before it was written spoils the result."""

    def __init__(self, like: Tensor) -> None:
        self.values = torch.full_like(like, torch.nan)

    def read(self, box: tuple[slice, ...]) -> Tensor:
        return self.values[:, :, *box].clone()

    def write(self, box: tuple[slice, ...], values: Tensor) -> None:
        self.values[:, :, *box] = values


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("most_pixels", [None, 4200])
@pytest.mark.parametrize("ensemble", [1, 2, 4, 8])
def test_streaming_gives_what_a_volume_in_memory_gives(
    spatial_dims: int, most_pixels: int | None, ensemble: int
) -> None:
    network, image = some_network(spatial_dims), torch.rand(1, 1, 120, 33, 20)
    max_memory = most_pixels and 2 * SAFETY * most_pixels * Sweep(network, None, CPU, 1.0).bytes_per_pixel
    inferer = TiledInferer(spatial_dims, 32, precision="fp32", max_memory=max_memory, ensemble=ensemble)
    assert inferer.can_stream(network)
    sums = SumsInMemory(image) if inferer.needs_sums else None
    boxes = []
    denoised = torch.full_like(image, torch.nan)

    def write(box: tuple[slice, ...], part: Tensor) -> None:
        boxes.append(box)
        denoised[:, :, *box] = part

    with torch.inference_mode():
        inferer.stream(lambda box: image[:, :, *box], write, image.shape[2:], network, sums)
        assert torch.equal(denoised, inferer(image, network))
        alone = TiledInferer(spatial_dims, 32, precision="fp32")(image, network)
        assert torch.equal(denoised, alone) is (ensemble == 1)
    count = len({(box[0].start, box[1].start) for box in boxes})
    assert count == (2 if spatial_dims == 3 and most_pixels else 1)
    if count == 1:
        assert [box[2].start for box in boxes] == sorted(box[2].start for box in boxes)


def test_an_ensemble_is_not_streamed_without_a_place_for_its_sums() -> None:
    inferer, image = TiledInferer(3, 32, precision="fp32", ensemble=2), torch.rand(1, 1, 16, 16, 16)
    with pytest.raises(ValueError, match="needs a place"):
        inferer.stream(lambda box: image[:, :, *box], lambda box, part: None, image.shape[2:], some_network(3))


def test_mirroring_to_a_size() -> None:
    line = torch.arange(3.0).view(1, 1, 3)
    assert mirror(line, 2, 8).flatten().tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert mirror(line, 2, 2) is line


def test_the_end_of_an_image_takes_no_more_at_once_than_its_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many planes wait in the deep layers for the last push; they must not all be large ones at the same time."""
    network, image = some_network(3), torch.rand(1, 1, 96, 16, 16)
    given: list[int] = []
    expand = RollingUpsample.push

    def counted(self: RollingUpsample, planes: Tensor | None, last: bool) -> Tensor | None:
        expanded = expand(self, planes, last)
        given.append(0 if expanded is None else expanded.shape[1])
        return expanded

    monkeypatch.setattr(RollingUpsample, "push", counted)
    stream = UNetStream(network, None, CPU, piece=2)
    for start in range(0, 96, 2):
        stream.push(image[:, :, start : start + 2], start == 94)
    assert sum(given) == 96 + 48 + 24
    assert max(given) <= 6


def test_no_voxel_goes_through_the_network_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = some_network(3), torch.rand(1, 1, 56, 48, 64)
    pushed: list[int] = []
    push = UNetStream.push

    def counted(self: UNetStream, noisy: Tensor | None, last: bool) -> Tensor | None:
        pushed.append(0 if noisy is None else noisy.numel())
        return push(self, noisy, last)

    windows: list[int] = []
    with torch.inference_mode():
        inferer = TiledInferer(3, 32, precision="fp32")
        inferer(image, network)  # counts its memory once
        monkeypatch.setattr(UNetStream, "push", counted)
        inferer(image, network)
    SlidingWindowInferer((32, 32, 32), overlap=0.25)(image, lambda tiles: windows.append(tiles.numel()) or tiles)
    assert sum(pushed) == image.numel()
    assert sum(windows) > 1.5 * image.numel(), "what overlapping windows cost"
