"""What tests of streaming share: voxels, and a stand-in for the inferer.

It works voxel by voxel, so that whatever boxes it takes, the result is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from adl_monai.data.raw_voxels import Box
from adl_monai.inferers import TiledInferer

MARGIN = 3
SHAPE = (13, 18, 23)


def voxels(dtype: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(3)
    if np.dtype(dtype).kind == "f":
        return rng.normal(40, 300, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(max(limits.min, -30000), min(limits.max, 30000), shape, endpoint=True).astype(dtype)


def brighter(values: Tensor) -> Tensor:
    """Leaves the range of the scan's type here and there; each of its steps is exact in one way only."""
    return values.mul(1.25).add(0.03125)


def windows(size: int, count: int) -> list[slice]:
    edges = [size * index // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def box_by_box(
    read: Callable[[Box], Tensor], write: Callable[[Box, Tensor], None], shape: tuple[int, ...], cut: int, planes: int
) -> None:
    """Reads with margins, as an inferer of overlapping tiles does; writes each voxel once, column after column."""
    for rows in windows(shape[0], cut):
        for columns in windows(shape[1], cut):
            for start in range(0, shape[2], planes):
                box = rows, columns, slice(start, min(start + planes, shape[2]))
                wide = tuple(
                    slice(max(0, part.start - MARGIN), min(size, part.stop + MARGIN))
                    for part, size in zip(box, shape, strict=True)
                )
                inner = tuple(
                    slice(part.start - outer.start, part.stop - outer.start)
                    for part, outer in zip(box, wide, strict=True)
                )
                denoised = brighter(read(wide)[0, 0][inner])[None, None]
                write(box, denoised)
                denoised.zero_()  # as an inferer may that goes on with its own memory


def stand_in(monkeypatch: pytest.MonkeyPatch, cut: int = 1, planes: int = 5) -> None:
    """Replaces the network's part of both ways, in memory and box by box; the plane is cut into ``cut``² columns."""

    def stream(self: Any, read: Any, write: Any, shape: Any, *rest: Any) -> None:
        box_by_box(read, write, shape, cut, planes)

    monkeypatch.setattr(TiledInferer, "__call__", lambda self, inputs, network: brighter(inputs))
    monkeypatch.setattr(TiledInferer, "stream", stream)
    monkeypatch.setattr(TiledInferer, "can_stream", lambda self, network: True)
