"""What a sweep reads and works on at once is as much as its voxels allow, whatever the size of the image."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adl_monai import bars
from adl_monai.data.raw_voxels import Box
from adl_monai.inferers import sweep as sweeping
from adl_monai.inferers.sweep import SAFETY, Sweep
from adl_monai.inferers.unet_stream import UNetStream
from adl_monai.networks import EfficientUNet
from tests.inferers.test_sweep import CPU, assert_same, some_network, whole
from tests.inferers.test_unet_stream import nodes


def swept(sweep: Sweep, images: Tensor, **options: Any) -> tuple[Tensor, list[Box]]:
    """The result and the boxes that were read for it; none is empty or leaves the image, as a file wants it."""
    denoised, boxes = torch.full_like(images, torch.nan), []

    def check(box: Box) -> None:
        assert all(0 <= part.start < part.stop <= size for part, size in zip(box, images.shape[2:], strict=True))

    def read(box: Box) -> Tensor:
        check(box)
        boxes.append(box)
        return images[:, :, *box]

    def write(box: Box, part: Tensor) -> None:
        check(box)
        denoised[:, :, *box] = part

    with torch.inference_mode():
        sweep(read, write, images.shape[2:], **options)
    return denoised, boxes


@pytest.mark.parametrize(("voxels", "rows"), [(16 * 24, 24), (2 * 16, 8)])
def test_some_rows_are_read_at_once(monkeypatch: pytest.MonkeyPatch, voxels: int, rows: int) -> None:
    """Never the whole image, nor row by row; and of what was read, the last cell's worth is kept for its end."""
    mirrored, kept = Sweep._mirrored, []

    def noted(self: Sweep, recent: Tensor, length: int, padded: int) -> Tensor:
        kept.append(recent.shape[2])
        return mirrored(self, recent, length, padded)

    monkeypatch.setattr(Sweep, "_mirrored", noted)
    network, image = some_network(2), torch.rand(1, 1, 60, 16)
    sweep = Sweep(network, None, CPU, math.inf)
    sweep.voxels = voxels
    denoised, boxes = swept(sweep, image)
    assert_same(denoised, whole(network, image))
    assert [box[0] for box in boxes] == [slice(at, min(at + rows, 60)) for at in range(0, 60, rows)]
    assert kept == [8]


def test_the_images_of_a_batch_share_the_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    push, pushed = UNetStream.push, []

    def noted(self: UNetStream, noisy: Tensor | None, last: bool) -> Tensor | None:
        assert noisy is not None
        pushed.append(noisy[:, 0].numel())
        return push(self, noisy, last)

    sweep = Sweep(some_network(2), None, CPU, math.inf)
    monkeypatch.setattr(UNetStream, "push", noted)
    sweep.voxels = 4 * 16 * 8
    swept(sweep, torch.rand(4, 1, 32, 16))
    assert pushed == [4 * 16 * 8] * 4


@pytest.mark.parametrize("most_pixels", [math.inf, 120])
def test_the_bar_ends_where_the_image_does(monkeypatch: pytest.MonkeyPatch, most_pixels: float) -> None:
    class Bar:
        def __init__(self, total: int, **_: Any) -> None:
            self.total, self.done = total, 0
            shown.append(self)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            assert self.done == self.total

        def update(self, steps: int) -> None:
            self.done += steps

    shown: list[Bar] = []
    monkeypatch.setattr(bars, "tqdm", Bar)
    sweep = Sweep(some_network(2), None, CPU, math.inf)
    sweep.most_pixels = most_pixels
    columns = len(sweep.columns((20, 203)))
    assert (columns > 1) is (most_pixels == 120)
    swept(sweep, torch.rand(1, 1, 20, 203), progress=True)
    assert [bar.total for bar in shown] == [20 * columns]


def test_memory_is_counted_for_each_build_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "_COUNTED", {})
    narrow, wide = (EfficientUNet(2, filters=(size,) * 4, norm=None, content_enhancer=False) for size in (4, 8))
    full = Sweep(narrow, None, CPU, 1e9)
    half = Sweep(narrow, torch.bfloat16, CPU, 1e9)
    assert half.bytes_per_pixel < 0.6 * full.bytes_per_pixel
    assert half.most_pixels == pytest.approx(full.most_pixels * full.bytes_per_pixel / half.bytes_per_pixel)
    assert Sweep(wide, None, CPU, 1e9).bytes_per_pixel > 1.5 * full.bytes_per_pixel


def test_after_a_failure_nothing_of_the_failed_pass_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = some_network(2), torch.rand(1, 1, 64, 16)
    sweep = Sweep(network, None, CPU, math.inf)
    with torch.inference_mode():
        sweep.stream.push(image[:, :, :24], False)
    assert sweep.stream.held_bytes() > 0
    voxels = sweep.voxels
    assert not sweep.shrink(image.shape[2:]), "16 columns cannot be cut, and the pieces fit the cache"
    assert sweep.voxels == voxels
    assert_same(swept(sweep, image)[0], whole(network, image))


def test_a_column_is_no_larger_than_it_must_be() -> None:
    """Twice the halo gives the same image in twice the time."""
    network = some_network(2)
    sweep = Sweep(network, None, CPU, math.inf)
    sweep.most_pixels = 120
    image = torch.rand(1, 1, 24, 300)
    _, boxes = swept(sweep, image)
    first, second = sorted({(box[1].start, box[1].stop) for box in boxes})[:2]
    margin = sweeping.receptive_margin(network)
    assert 2 * margin <= first[1] - second[0] < 2 * (margin + 8)


def test_columns_overlap_by_whole_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "receptive_margin", lambda network: 33)
    assert Sweep(some_network(2), None, CPU, math.inf).halo == 40


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that live at the same time: those given, and those made from then on."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.users: Counter[int] = Counter()  # of each piece of memory
        self.now = self.most = 0
        self._watch(tensors)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = operation(*args, **(kwargs or {}))
        self._watch(result for result in tree_leaves(results) if isinstance(result, Tensor))
        return results

    def _watch(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            memory = tensor.untyped_storage()
            self._count(memory.data_ptr(), memory.nbytes(), 1)
            weakref.finalize(tensor, self._count, memory.data_ptr(), memory.nbytes(), -1)

    def _count(self, address: int, size: int, users: int) -> None:
        was_used = self.users[address] > 0
        self.users[address] += users
        self.now += size * ((self.users[address] > 0) - was_used)
        self.most = max(self.most, self.now)


@pytest.mark.parametrize("paper", [False, True])
def test_a_column_takes_no_more_than_was_estimated(paper: bool) -> None:
    """For the shipped kind nearly so without the safety, which is for gaps in the heap: they are not counted here."""
    sweep = Sweep(some_network(2, paper), None, CPU, math.inf)
    sweep.stream.piece = 2  # as with large planes, of which a few are more than the cache holds
    with torch.inference_mode():
        for _ in range(48):
            sweep.stream.push(torch.rand(1, 1, 2, 32), False)
        with Live(tensor for node in nodes(sweep.stream) for tensor in node.tensors()) as live:
            for step in range(8):
                sweep.stream.push(torch.rand(1, 1, 2, 32), step == 7)
    estimate = 32 * sweep.bytes_per_pixel
    assert estimate / 4 < live.most <= estimate * (SAFETY if paper else 1.1)
    assert live.now == 0
