"""Leads an Efficient-UNet along an image that is read and written piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from adl_monai.bars import bar
from adl_monai.data.raw_voxels import Box
from adl_monai.inferers.columns import Column, plan_columns, smallest_column
from adl_monai.inferers.unet_stream import UNetStream
from adl_monai.networks import EfficientUNet, receptive_margin
from adl_monai.networks.backbone import DIVISOR as CELL

VOXELS_AT_ONCE = {"cpu": 2**17, "cuda": 2**22}  # on a CPU, what stays in the cache
COPIES = 6  # of the finest features of what is computed at once; measured on a CPU
LEAST_READ = 8  # planes
SAFETY = 2.5  # of the estimate: freed planes leave gaps in the heap; measured 1.8 to 2.6 on planes of 1024²

_COUNTED: dict[Hashable, float] = {}

Read = Callable[[Box], Tensor]
Write = Callable[[Box, Tensor], None]


class Sweep:
    """Denoises images of any length along one axis: the last of a volume, the first of a 2D image.

    The other axes are whole where the memory allows, otherwise cut into columns that overlap by what the network can
    see. The result is that of the network on the whole image at once, whatever the pieces.

    Args:
        network: For which ``unet_stream.can_roll`` holds.
        dtype: Of the convolutions; None for float32.
        device: Where they run.
        most_bytes: Of memory to use, about.
    """

    def __init__(
        self, network: EfficientUNet, dtype: torch.dtype | None, device: torch.device, most_bytes: float
    ) -> None:
        axes = network.encoder.encode1.conv1.weight.ndim - 2
        self.along: int = axes - 1 if axes == 3 else 0
        self.across = tuple(axis for axis in range(axes) if axis != self.along)
        self._stream = partial(UNetStream, network, dtype, device, (self.along, *self.across))
        self.stream = self._stream()
        self.halo = -(-receptive_margin(network) // CELL) * CELL
        width = network.encoder.encode1.conv1.weight.shape[0]
        affordable = most_bytes / 2 / (COPIES * width * self.stream.dtype.itemsize)
        self.voxels = int(min(VOXELS_AT_ONCE.get(device.type, VOXELS_AT_ONCE["cuda"]), max(1, affordable)))
        self.bytes_per_pixel = self._bytes_per_pixel(network)
        self.most_pixels = most_bytes / (SAFETY * self.bytes_per_pixel)

    def shrink(self, shape: Sequence[int]) -> bool:
        """After a pass that ran out of memory: be ready for another, in columns and pieces of about half the size.

        Returns:
            Whether anything is smaller now. Pieces that fit a processor's cache stay as they are.
        """
        self.stream = self._stream()
        plane = [_ceil(shape[axis]) for axis in self.across]
        largest = max(column.pixels() for column in self.columns(shape))
        self.most_pixels = max(largest / 2, smallest_column(plane, self.halo, CELL))
        voxels, self.voxels = self.voxels, min(self.voxels, max(self.voxels // 2, VOXELS_AT_ONCE["cpu"]))
        return self.most_pixels < largest or self.voxels < voxels

    def columns(self, shape: Sequence[int]) -> list[Column]:
        """How an image of this shape is cut.

        Raises:
            OutOfMemoryError: If not even the smallest column fits the memory.
        """
        return plan_columns([_ceil(shape[axis]) for axis in self.across], self.halo, self.most_pixels, CELL)

    def __call__(self, read: Read, write: Write, shape: Sequence[int], progress: bool = False) -> None:
        """Denoise.

        Args:
            read: Gives the noisy voxels of a box (a slice for each axis of the image), (B, C, ...) float32.
            write: Takes the denoised voxels of a box, in the same layout; every voxel comes once. A tensor that was
                handed over is not used again.
            shape: Of the image, without batch and channels.
            progress: Show a bar.
        """
        columns = self.columns(shape)
        with bar(shape[self.along] * len(columns), "plane", progress) as advance:
            for column in columns:
                self._run(column, read, write, shape, advance)

    def _run(
        self, column: Column, read: Read, write: Write, shape: Sequence[int], advance: Callable[[int], object]
    ) -> None:
        length, done = shape[self.along], 0
        padded = _ceil(length)
        area = column.pixels()
        recent: Tensor | None = None
        planes = max(LEAST_READ, self.voxels // area)
        for start in range(0, length, planes):
            stop = min(start + planes, length)
            noisy = self._read(column, read, shape, start, stop)
            self.stream.piece = max(1, self.voxels // (area * noisy.shape[0]))
            recent = noisy if recent is None else torch.cat([recent, noisy], 2)
            recent = recent[:, :, -CELL:]  # what the last cell is filled from, at most
            if stop == length:
                noisy = torch.cat([noisy, self._mirrored(recent, length, padded)], 2)
            for first in range(0, noisy.shape[2], self.stream.piece):
                part = noisy[:, :, first : first + self.stream.piece]
                last = stop == length and first + self.stream.piece >= noisy.shape[2]
                denoised = self.stream.push(part, last)
                if denoised is not None:
                    done += self._write(column, write, denoised, shape, done)
            advance(stop - start)

    def _box(self, across: Sequence[slice], along: slice) -> Box:
        axes = dict(zip(self.across, across, strict=True)) | {self.along: along}
        return tuple(axes[axis] for axis in range(len(axes)))

    def _read(self, column: Column, read: Read, shape: Sequence[int], start: int, stop: int) -> Tensor:
        """Planes start to stop of a column: (B, C, n, ...), mirrored at the image's end to whole cells."""
        real = [slice(part.start, min(part.stop, shape[a])) for part, a in zip(column.read, self.across, strict=True)]
        noisy = read(self._box(real, slice(start, stop))).movedim(2 + self.along, 2)
        for axis, part in enumerate(column.read, start=3):
            noisy = mirror(noisy, axis, part.stop - part.start)
        return noisy

    def _mirrored(self, recent: Tensor, length: int, padded: int) -> Tensor:
        """The planes that fill the last cell."""
        held = recent.shape[2]
        extended = mirror(recent, 2, held + padded - length)
        return extended[:, :, held:]

    def _write(self, column: Column, write: Write, denoised: Tensor, shape: Sequence[int], done: int) -> int:
        """Hand over a column's core; returns the number of planes."""
        along = slice(done, min(done + denoised.shape[2], shape[self.along]))
        if along.stop <= along.start:
            return denoised.shape[2]
        # Never empty: it starts at a cell's start, and every cell holds some of the image.
        core = [slice(part.start, min(part.stop, shape[a])) for part, a in zip(column.core, self.across, strict=True)]
        inner = [slice(c.start - r.start, c.stop - r.start) for c, r in zip(core, column.read, strict=True)]
        kept = denoised[(slice(None), slice(None), slice(0, along.stop - along.start), *inner)]
        write(self._box(core, along), kept.movedim(2, 2 + self.along))
        return denoised.shape[2]

    def _bytes_per_pixel(self, network: EfficientUNet) -> float:
        """Memory of a column, divided by its pixels."""
        # The same for all networks of one build, and counted once.
        build = (*((name, weight.shape) for name, weight in network.state_dict().items()), self.stream.dtype)
        if build not in _COUNTED:
            _COUNTED[build] = self._count_bytes(network)
        return _COUNTED[build]

    @torch.inference_mode()
    def _count_bytes(self, network: EfficientUNet) -> float:
        """What waits, counted on a tiny column, and what is worked on."""
        channels = network.encoder.encode1.conv1.weight.shape[1]
        tiny = torch.zeros(1, channels, CELL, *[CELL] * len(self.across))
        self.stream.piece = CELL
        waiting = 0
        for step in range(cells := 2 * self.halo // CELL + 2):
            self.stream.push(tiny, step == cells - 1)
            waiting = max(waiting, self.stream.held_bytes())
        width = network.encoder.encode1.conv1.weight.shape[0]
        # The finest stage holds a cell from below, and pieces of two planes or so in five or six copies.
        worked_on = 4 * CELL * width * self.stream.dtype.itemsize
        return waiting / CELL ** len(self.across) + worked_on


def mirror(image: Tensor, axis: int, size: int) -> Tensor:
    """Extend an axis at its end to ``size``, mirrored at the last voxel; a short one is mirrored back and forth."""
    have = image.shape[axis]
    if have >= size:
        return image
    period = max(2 * (have - 1), 1)
    position = torch.arange(size, device=image.device) % period
    return image.index_select(axis, torch.where(position < have, position, period - position))


def _ceil(size: int) -> int:
    return -(-size // CELL) * CELL
