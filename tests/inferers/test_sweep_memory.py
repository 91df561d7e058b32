"""Where memory is short or runs out, a sweep takes smaller columns and pieces, and gives the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from adl_monai.inferers import sweep
from adl_monai.inferers.sweep import Sweep
from adl_monai.inferers.unet_stream import UNetStream
from tests.inferers.test_sweep import CPU, TiledInferer, assert_same, some_network, whole

FULL = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


def hungry(
    monkeypatch: pytest.MonkeyPatch, too_large: Callable[[Tensor, bool], bool], error: Exception
) -> list[Tensor]:
    """Let memory run out for some pieces; returns the list in which all that are pushed will be."""
    push, pieces = UNetStream.push, []

    def limited(self: UNetStream, noisy: Tensor | None, last: bool) -> Tensor | None:
        assert noisy is not None
        pieces.append(noisy)
        if too_large(noisy, last):
            raise error
        return push(self, noisy, last)

    monkeypatch.setattr(UNetStream, "push", limited)
    return pieces


def test_memory_that_runs_out_gives_smaller_columns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network, image = some_network(3), torch.rand(1, 1, 128, 16, 24)
    inferer = TiledInferer(3, 32, precision="fp32")
    pieces = hungry(monkeypatch, lambda noisy, _: noisy.shape[3] > 100, RuntimeError(FULL))
    with torch.inference_mode():
        denoised = inferer(image, network)
        assert_same(denoised, whole(network, image))
    assert "trying again in smaller pieces" in caplog.text
    assert max(piece.shape[3] for piece in pieces) == 128
    assert pieces[-1].shape[3] <= 100
    hungry(monkeypatch, lambda *_: True, RuntimeError(FULL))
    with pytest.raises(RuntimeError, match="allocate"):
        inferer(image, network)


def test_a_piece_takes_half_of_the_memory_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a GPU, whose pieces are as large as its memory allows: 6 copies of 8 float32 features.
    monkeypatch.setitem(sweep.VOXELS_AT_ONCE, "cpu", 2**22)
    assert Sweep(some_network(3), None, CPU, math.inf).voxels == 2**22
    assert Sweep(some_network(3), None, CPU, 2**28).voxels == 2**27 // (6 * 8 * 4)
    assert Sweep(some_network(3), torch.bfloat16, CPU, 2**28).voxels == 2**27 // (6 * 8 * 2)


def test_memory_that_runs_out_gives_smaller_pieces_of_the_smallest_column(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = some_network(3), torch.rand(1, 1, 16, 16, 64)
    inferer = TiledInferer(3, 32, precision="fp32")
    as_on_a_gpu = Sweep(network, None, CPU, math.inf)
    monkeypatch.setattr(inferer, "_sweep", lambda *_: as_on_a_gpu)
    monkeypatch.setitem(sweep.VOXELS_AT_ONCE, "cpu", 16 * 16 * 8)
    error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
    pieces = hungry(monkeypatch, lambda noisy, last: last and noisy.shape[2] > 8, error)
    as_on_a_gpu.voxels = 16 * 16 * 32
    with torch.inference_mode():
        assert_same(inferer(image, network), whole(network, image))
    # A half or more was written each time, and is written again.
    assert [piece.shape[2] for piece in pieces] == [32, 32, 16, 16, 16, 16, *[8] * 8]
    # What leaves for a file comes but once.
    as_on_a_gpu.voxels = 16 * 16 * 32
    with torch.inference_mode(), pytest.raises(torch.cuda.OutOfMemoryError):
        inferer.stream(lambda box: image[:, :, *box], lambda box, part: None, image.shape[2:], network)
