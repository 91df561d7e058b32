"""Self-ensemble: the mean over mirror images, which a network without mirror symmetry gains from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

from torch import Tensor

from adl_monai.data.raw_voxels import Box
from adl_monai.errors import UsageError
from adl_monai.inferers.sweep import Read, Write

MIRROR_IMAGES = (1, 2, 4, 8)


def check_ensemble(count: int | bool) -> int:
    """The number of mirror images; False and True, as bundles have had it, are one and all.

    Raises:
        UsageError: If it is not 1, 2, 4 or 8.
    """
    if isinstance(count, bool):
        return 8 if count else 1
    if count not in MIRROR_IMAGES:
        raise UsageError(f"ensemble is {count!r}; expected a number of mirror images: 1, 2, 4 or 8.")
    return int(count)


def mirror_images(count: int, spatial_dims: int) -> list[tuple[int, ...]]:
    """The axes, counted from 0, that each mirror image is flipped along; the image itself comes first.

    Two are the image and its point reflection, four in 3D the rotations by half a turn, eight all there are; in 2D
    there are four. Each such set mirrored is itself again, so every direction counts the same.
    """
    every = [axes for length in range(spatial_dims + 1) for axes in combinations(range(spatial_dims), length)]
    if count == 1:
        return every[:1]
    if count == 2:
        return [every[0], every[-1]]
    if count < len(every):
        return [axes for axes in every if len(axes) % 2 == 0]
    return every


def mean_over_flips(network: Callable[[Tensor], Tensor], noisy: Tensor, count: int) -> Tensor:
    """Denoise mirror images, mirror back, average: one forward each, of the memory of one.

    Args:
        network: Maps (B, C, H, W[, D]) to one tensor of that shape.
        noisy: (B, C, H, W[, D]).
        count: 1, 2, 4 or 8; 8 gives the 4 there are in 2D.

    Source: Timofte, Rothe and Van Gool, "Seven ways to improve example-based single image super resolution",
    CVPR 2016, without their quarter turns, which a volume of anisotropic voxels does not allow.
    """
    _, *mirrored = mirror_images(count, noisy.ndim - 2)
    total: Tensor | None = None
    for flipped in mirrored:
        axes = [2 + axis for axis in flipped]
        # The result gets no name: it would live on beside the next forward. A flip is a copy, ours to change.
        if total is None:
            total = network(noisy.flip(axes)).flip(axes)
        else:
            total += network(noisy.flip(axes)).flip(axes)
    if total is None:
        return network(noisy)
    total += network(noisy)
    return total.div_(len(mirrored) + 1)


class Sums(Protocol):
    """Where the sums over mirror images wait, box by box: on the disk, say."""

    def read(self, box: Box) -> Tensor:
        """The values of a box that were written last, (1, C, h, w, d)."""

    def write(self, box: Box, values: Tensor) -> None:
        """Keep the values of a box."""


def stream_over_flips(
    run: Callable[[Read, Write], None], read: Read, write: Write, shape: Sequence[int], count: int, sums: Sums
) -> None:
    """``mean_over_flips`` of a volume of three axes that is read and written box by box, the image itself last.

    Args:
        run: Denoises the whole volume with such a ``read`` and ``write``; called once for each mirror image.
        read: Gives the noisy voxels of a box, (1, C, h, w, d).
        write: Takes the mean of a box, in the order in which the last run alone writes.
        shape: Of the volume.
        count: 2, 4 or 8.
        sums: Holds what the runs have given so far.
    """
    _, *mirrored = mirror_images(count, 3)
    for number, flipped in enumerate(mirrored):
        image = _Mirror(shape, flipped)
        run(image.reading(read), image.adding(sums, first=number == 0))
    run(read, lambda box, denoised: write(box, (sums.read(box) + denoised) / count))


@dataclass(frozen=True)
class _Mirror:
    """A volume's mirror image, whose boxes are other boxes of the volume."""

    shape: Sequence[int]
    flipped: tuple[int, ...]

    def box(self, box: Box) -> Box:
        return tuple(
            slice(size - part.stop, size - part.start) if axis in self.flipped else part
            for axis, (part, size) in enumerate(zip(box, self.shape, strict=True))
        )

    def flip(self, values: Tensor) -> Tensor:
        return values.flip([2 + axis for axis in self.flipped])

    def reading(self, read: Read) -> Read:
        return lambda box: self.flip(read(self.box(box)))

    def adding(self, sums: Sums, first: bool) -> Write:
        def add(box: Box, denoised: Tensor) -> None:
            place, values = self.box(box), self.flip(denoised)
            sums.write(place, values if first else sums.read(place) + values)

        return add
