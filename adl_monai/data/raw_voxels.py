"""Random access to the voxels of an uncompressed file, without a memory map: mapped pages would count as memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from threading import Lock
from typing import IO

import numpy as np

Box = tuple[slice, ...]
"""A part of a volume by its three index axes: slices with start and stop, step 1."""

_MOST_VOXELS = 1 << 20  # in one transfer, unless a plane holds more


class RawVoxels:
    """Voxels in an open file, first axis fastest, as NIfTI stores them.

    Calls from several threads take turns.

    Args:
        file: Buffered, binary, at least readable; whoever opened it closes it.
        offset: Bytes before the first voxel.
        shape: Of the volume.
        dtype: Of a voxel, with its byte order.
    """

    def __init__(self, file: IO[bytes], offset: int, shape: tuple[int, int, int], dtype: np.dtype) -> None:
        self.shape = shape
        self.dtype = dtype
        self._file = file
        self._offset = offset
        self._lock = Lock()

    def read(self, box: Box) -> np.ndarray:
        """The stored voxels of a box, in Fortran order.

        Raises:
            EOFError: If the file ends before.
        """
        rows, columns, planes = box
        stored = np.empty(lengths(box), self.dtype, order="F")
        with self._lock:
            for part in self._runs(columns, planes):
                found = self._load(columns, part)
                stored[:, :, part.start - planes.start : part.stop - planes.start] = found[rows]
        return stored

    def write(self, box: Box, stored: np.ndarray) -> None:
        """Put stored voxels of this type into their place."""
        rows, columns, planes = box
        with self._lock:
            for part in self._runs(columns, planes):
                voxels = stored[:, :, part.start - planes.start : part.stop - planes.start]
                if lengths(box)[0] < self.shape[0]:
                    whole = self._load(columns, part)
                    whole[rows] = voxels
                    voxels = whole
                self._seek(columns, part)
                self._file.write(as_bytes(voxels))

    def _runs(self, columns: slice, planes: slice) -> Iterator[slice]:
        """The planes of a box in groups that lie in one piece in the file, whole rows taken."""
        count = max(1, _MOST_VOXELS // math.prod(self.shape[:2]))
        if columns.stop - columns.start < self.shape[1]:
            count = 1
        for start in range(planes.start, planes.stop, count):
            yield slice(start, min(start + count, planes.stop))

    def _seek(self, columns: slice, planes: slice) -> None:
        index = self.shape[0] * (columns.start + self.shape[1] * planes.start)
        self._file.seek(self._offset + index * self.dtype.itemsize)

    def _load(self, columns: slice, planes: slice) -> np.ndarray:
        shape = (self.shape[0], columns.stop - columns.start, planes.stop - planes.start)
        voxels = np.empty(math.prod(shape), self.dtype)
        self._seek(columns, planes)
        held = self._file.readinto(voxels.view(np.uint8))  # type: ignore[attr-defined]
        if held != voxels.nbytes:
            raise EOFError(f"{held} of {voxels.nbytes} bytes are there")
        return voxels.reshape(shape, order="F")


def lengths(box: Box) -> tuple[int, int, int]:
    """The shape of a box."""
    rows, columns, planes = box
    return rows.stop - rows.start, columns.stop - columns.start, planes.stop - planes.start


def slabs(box: Box) -> Iterator[tuple[Box, slice]]:
    """A box cut along its last axis into parts of a million voxels or one plane, each with its planes within the box.

    What is converted slab by slab needs no second and third copy of the whole box.
    """
    rows, columns, planes = box
    count = max(1, _MOST_VOXELS // max(1, math.prod(lengths(box)[:2])))
    for start in range(planes.start, planes.stop, count):
        stop = min(start + count, planes.stop)
        yield (rows, columns, slice(start, stop)), slice(start - planes.start, stop - planes.start)


def as_bytes(voxels: np.ndarray) -> memoryview:
    """The bytes of voxels as a file holds them, first axis fastest."""
    return voxels.reshape(-1, order="F").view(np.uint8).data
