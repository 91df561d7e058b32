"""Cuts the planes of an image into columns that fit the memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from adl_monai.data.raw_voxels import Box
from adl_monai.errors import OutOfMemoryError

MOST_CUTS = 64  # along one axis


@dataclass(frozen=True)
class Column:
    """A part of every plane: what is read, and the part of that which is seen whole and kept."""

    read: Box
    core: Box

    def pixels(self) -> int:
        """Of each plane that is read."""
        return math.prod(part.stop - part.start for part in self.read)


def plan_columns(plane: Sequence[int], halo: int, most_pixels: float, divisor: int) -> list[Column]:
    """The fewest pixels to compute, in columns of at most so many pixels each, halos included.

    Neighbours overlap by ``halo`` on either side, which is all that a network of that radius can see: the result has no
    seams. Along the image's own borders there is no halo.

    Args:
        plane: Size of the planes in pixels, multiples of ``divisor``: (h, w), or (w,) for the rows of a 2D image.
        halo: Multiple of ``divisor``.
        most_pixels: What the memory allows.
        divisor: What columns start and end at multiples of.

    Raises:
        OutOfMemoryError: If not even the smallest column fits.
    """
    best: list[list[tuple[int, int]]] | None = None
    cost = math.inf
    for counts in product(*(_counts(size, divisor) for size in plane)):
        axes = [_cut(size, count, divisor) for size, count in zip(plane, counts, strict=True)]
        lengths = [_lengths(cuts, halo, size) for cuts, size in zip(axes, plane, strict=True)]
        if math.prod(max(along) for along in lengths) > most_pixels:
            continue
        total = math.prod(sum(along) for along in lengths)
        if total < cost:
            best, cost = axes, total
    if best is None:
        raise OutOfMemoryError(
            f"columns of {most_pixels:.0f} pixels are all that the memory allows, and the network needs "
            f"{smallest_column(plane, halo, divisor)}; raise --max-memory or close other programs."
        )
    return [
        Column(
            read=tuple(slice(*_grown(cut, halo, size)) for cut, size in zip(cuts, plane, strict=True)),
            core=tuple(slice(*cut) for cut in cuts),
        )
        for cuts in product(*best)
    ]


def smallest_column(plane: Sequence[int], halo: int, divisor: int) -> int:
    """Pixels of the smallest columns that a plane can be cut into; more in a plane too large for ``MOST_CUTS``."""
    return math.prod(
        min(max(_lengths(_cut(size, count, divisor), halo, size)) for count in _counts(size, divisor)) for size in plane
    )


def _counts(size: int, divisor: int) -> range:
    """Into how many parts an axis may be cut."""
    return range(1, min(size // divisor, MOST_CUTS) + 1)


def _cut(size: int, count: int, divisor: int) -> list[tuple[int, int]]:
    """About equal parts, at multiples of the divisor; ``count`` is at most ``size / divisor``, so none is empty."""
    edges = [round(part * size / count / divisor) * divisor for part in range(count + 1)]
    return list(pairwise(edges))


def _lengths(cuts: Sequence[tuple[int, int]], halo: int, size: int) -> list[int]:
    """Of parts with their halos."""
    grown = (_grown(cut, halo, size) for cut in cuts)
    return [stop - start for start, stop in grown]


def _grown(cut: tuple[int, int], halo: int, size: int) -> tuple[int, int]:
    return max(0, cut[0] - halo), min(size, cut[1] + halo)
