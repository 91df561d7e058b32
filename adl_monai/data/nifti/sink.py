"""Writing a NIfTI file box by box: the bytes of `adl_monai.data.io.write_volume`, without the volume in memory."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from gzip import GzipFile
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from adl_monai.data.nifti.file import compressing, header_like, is_gzip, open_stream, peek_header
from adl_monai.data.nifti.header import Header, check_end, read_header, read_pieces
from adl_monai.data.nifti.stream import as_3d, unnamed_file
from adl_monai.data.output import check_output, check_room, publishing, sync
from adl_monai.data.raw_voxels import Box, RawVoxels, as_bytes, lengths, slabs
from adl_monai.data.voxels import quantise, report_clipped
from adl_monai.errors import AdlError, OutputError

_PIECE = 1 << 22  # bytes compressed or read back in one go


class NiftiSink:
    """Takes a volume's values, every voxel once, and rounds, saturates and stores them.

    Attributes:
        clipped: Number of voxels so far that did not fit the type and were saturated.
    """

    def __init__(self, header: Header, choose: Callable[[Box], _Store]) -> None:
        self.clipped = 0
        self._header = header
        self._choose = choose
        self._store: _Store | None = None  # the first box tells
        self._written = 0

    def write(self, box: Box, values: np.ndarray) -> None:
        """Store the values of a box: float32, of the box's shape.

        Raises:
            OutputError: If values are not finite or do not fit a real type.
            OSError: If the disk refuses; `nifti_sink` turns it into words.
            ValueError: If the values do not fit the box, or planes that are compressed on the way do not come in order.
        """
        if values.shape != lengths(box):
            raise ValueError(f"values of shape {values.shape} given for a box of {lengths(box)}.")
        if self._store is None:
            self._store = self._choose(box)
        header = self._header
        for part, planes in slabs(box):
            stored, clipped = quantise(values[:, :, planes], header.dtype, header.slope, header.inter)
            self._store.put(part, stored)
            self.clipped += clipped
            self._written += stored.size

    def finish(self) -> _Store:
        """End the file, after the last box; returns what holds the voxels.

        Raises:
            ValueError: If the voxels written are not as many as the volume has.
        """
        if self._store is None or self._written != math.prod(self._header.shape):
            raise ValueError(f"{self._written} of {math.prod(self._header.shape)} voxels were written.")
        self._store.finish()
        return self._store


@contextmanager
def nifti_sink(
    path: Path,
    source: Path,
    header: Header,
    dtype: str | np.dtype = "same",
    overwrite: bool = False,
) -> Iterator[NiftiSink]:
    """A NIfTI file to be written like its source; checked and under its name when the block has ended well.

    A .nii.gz file whose first box is whole planes from the first on is compressed on the way, and all boxes must follow
    in the order of the planes; otherwise the voxels wait in a file beside it, and boxes come in any order.

    Args:
        path: The file to write, .nii or .nii.gz.
        source: The NIfTI source.
        header: The source's header, of three axes (of a time series, `Header.stacked`).
        dtype: ``same`` or a type, see `adl_monai.data.nifti.file.plan_nifti`.
        overwrite: Whether an existing output may be replaced.

    Raises:
        OutputError: If the file cannot be written or would not hold what was meant; nothing is left behind.
        ValueError: If not every voxel was written.
    """
    check_output(path, source, overwrite)
    header = header_like(header, dtype)
    with publishing(path, overwrite) as temporary:
        with temporary.open("w+b") as file, _choice_of_store(file, header, path) as choose:
            sink = NiftiSink(header, choose)
            yield sink
            store = sink.finish()
        sync(temporary)
        _compare(temporary, header, store, path)
    report_clipped(sink.clipped, header.dtype, path)


class _Store(Protocol):
    def put(self, box: Box, stored: np.ndarray) -> None: ...

    def finish(self) -> None: ...

    def is_in(self, written: Path) -> bool:
        """Whether a finished file holds the voxels that were put."""


@contextmanager
def _choice_of_store(file: IO[bytes], header: Header, path: Path) -> Iterator[Callable[[Box], _Store]]:
    """How voxels are stored, by the first box of them."""
    if not is_gzip(path):
        check_room(path, len(header.raw) + voxel_bytes(header))
        file.write(header.raw)
        yield lambda first: _Boxes(file, len(header.raw), header)
        return
    with compressing(file) as stream, ExitStack() as opened:

        def choose(first: Box) -> _Store:
            # Not the inferer beforehand: it may have to cut planes that it wanted whole, when memory runs out.
            if lengths(first)[:2] == header.shape[:2] and first[2].start == 0:
                return _Compressed(stream, header)
            raw = opened.enter_context(unnamed_file(path, voxel_bytes(header)))
            return _CompressedLater(stream, raw, header)

        yield choose


class _Boxes:
    """Voxels put anywhere into an uncompressed file, with a checksum for each box."""

    def __init__(self, file: IO[bytes], offset: int, header: Header) -> None:
        self._file, self._offset, self._header = file, offset, header
        self._voxels = RawVoxels(file, offset, as_3d(header), header.dtype)
        self._sums: list[tuple[Box, int]] = []
        file.truncate(offset + voxel_bytes(header))

    def put(self, box: Box, stored: np.ndarray) -> None:
        self._voxels.write(box, stored)
        self._sums.append((box, zlib.crc32(as_bytes(stored))))

    def finish(self) -> None:
        self._file.flush()

    def is_in(self, written: Path) -> bool:
        with written.open("rb") as file:
            return self.are_in(file)

    def are_in(self, file: IO[bytes]) -> bool:
        voxels = RawVoxels(file, self._offset, as_3d(self._header), self._header.dtype)
        return all(zlib.crc32(as_bytes(voxels.read(box))) == expected for box, expected in self._sums)


class _Compressed:
    """Voxels put plane after plane into a gzip stream."""

    def __init__(self, stream: GzipFile, header: Header) -> None:
        self._stream, self._header = stream, header
        self._checksum = self._plane = 0
        stream.write(header.raw)

    def put(self, box: Box, stored: np.ndarray) -> None:
        if lengths(box)[:2] != self._header.shape[:2] or box[2].start != self._plane:
            raise ValueError(f"box {box} given; expected whole planes from plane {self._plane} on.")
        self._plane = box[2].stop
        self.append(as_bytes(stored))

    def append(self, voxels: memoryview | bytes) -> None:
        self._stream.write(voxels)
        self._checksum = zlib.crc32(voxels, self._checksum)

    def finish(self) -> None:
        self._stream.close()

    def is_in(self, written: Path) -> bool:
        checksum = 0
        with open_stream(written) as stream:
            read_header(stream, written, time_series=True)
            for piece in read_pieces(stream, voxel_bytes(self._header), _PIECE, written):
                checksum = zlib.crc32(piece, checksum)
            check_end(stream, written)
        return checksum == self._checksum


class _CompressedLater:
    """Voxels put anywhere into a file without a name, which is compressed at the end."""

    def __init__(self, stream: GzipFile, raw: IO[bytes], header: Header) -> None:
        self._raw = raw
        self._boxes = _Boxes(raw, 0, header)
        self._compressed = _Compressed(stream, header)
        self.put = self._boxes.put

    def finish(self) -> None:
        if not self._boxes.are_in(self._raw):
            raise OSError("what was written to the disk is not what it holds")
        self._raw.seek(0)
        while piece := self._raw.read(_PIECE):
            self._compressed.append(piece)
        self._compressed.finish()

    def is_in(self, written: Path) -> bool:
        return self._compressed.is_in(written)


def voxel_bytes(header: Header) -> int:
    """How many bytes the voxels take, uncompressed."""
    return math.prod(header.shape) * header.dtype.itemsize


def _compare(written: Path, header: Header, store: _Store, path: Path) -> None:
    try:
        faults = [] if peek_header(written, time_series=True).raw == header.raw else ["header"]
        faults += [] if store.is_in(written) else ["voxels"]
    except (AdlError, EOFError) as error:
        raise OutputError(
            f"{path}: the file just written cannot be read back; the disk may be full or faulty."
        ) from error
    if faults:
        raise OutputError(f"{path}: the file just written differs in {' and '.join(faults)} from what was meant.")
