"""As much goes through the network at once as the memory and the processor's cache allow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adl_monai.inferers import TiledInferer
from adl_monai.inferers.sweep import SAFETY, VOXELS_AT_ONCE
from adl_monai.inferers.unet_stream import UNetStream
from adl_monai.networks import EfficientUNet
from tests.inferers.test_sweep import CPU, some_network


def pushed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Fills with the shapes of what goes through the network."""
    push, shapes = UNetStream.push, []

    def counted(self: UNetStream, noisy: Tensor | None, last: bool) -> Tensor | None:
        assert noisy is not None
        shapes.append(tuple(noisy.shape))
        return push(self, noisy, last)

    monkeypatch.setattr(UNetStream, "push", counted)
    return shapes


@pytest.mark.parametrize(("options", "expected"), [({}, 1e9), ({"max_memory": 3e9}, 1.5e9)])
def test_half_of_the_memory_allowed_is_for_the_network(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], expected: float
) -> None:
    """Without a word of it, half of what the machine has free is allowed."""
    monkeypatch.setattr("adl_monai.memory.available_memory", lambda: 4e9)
    sweep = TiledInferer(2, 16, precision="fp32", **options)._sweep(some_network(2), CPU)
    assert sweep.most_pixels * SAFETY * sweep.bytes_per_pixel == pytest.approx(expected)


def test_as_many_images_at_once_as_their_voxels_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = some_network(2), torch.rand(5, 1, 16, 16)
    inferer = TiledInferer(2, 16, precision="fp32")
    sweep = inferer._sweep(network, CPU)
    shapes = pushed(monkeypatch)
    with torch.inference_mode():
        sweep.voxels = 2 * 16 * 16
        inferer._run_sweep(images, sweep)
        assert [shape[0] for shape in shapes] == [2, 2, 1]
        shapes.clear()
        sweep.voxels = 2 * 16 * 8  # less than an image: one, and of that some rows
        inferer._run_sweep(images[:1], sweep)
        assert [shape[2] for shape in shapes] == [16]
        shapes.clear()
        inferer._run_sweep(images[:1].tile(1, 1, 1, 2), sweep)
        assert [shape[2] for shape in shapes] == [8, 8]


def test_as_many_slices_are_read_at_once_as_their_voxels_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """All their channels, none twice and none past the end."""
    network = EfficientUNet(2, 2, 2, (8, 8, 8, 8), norm=None, head="residual", multi_scale=False).eval()
    volume = torch.rand(1, 2, 16, 16, 5)
    monkeypatch.setitem(VOXELS_AT_ONCE, "cpu", 2 * 16 * 16)
    inferer, streamed = TiledInferer(2, 16, precision="fp32"), torch.full_like(volume, torch.nan)
    read_slices, written = [], []

    def read(box: tuple[slice, ...]) -> Tensor:
        read_slices.append((box[2].start, box[2].stop))
        return volume[:, :, *box]

    def write(box: tuple[slice, ...], part: Tensor) -> None:
        written.append((box[2].start, box[2].stop))
        streamed[:, :, *box] = part

    with torch.inference_mode():
        inferer.stream(read, write, volume.shape[2:], network)
        torch.testing.assert_close(streamed, inferer(volume, network))
    assert written == [(0, 2), (2, 4), (4, 5)]
    assert sorted(read_slices) == written
