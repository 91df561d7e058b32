"""The NIfTI door for volumes larger than the memory: values come and go box by box.

A source is looked at once from its first byte to its last, with the checks of `adl_monai.data.nifti.file.read_nifti`; a
.nii.gz file is inflated on the way, into a file without a name that ends with the program. A sink stores what
`adl_monai.data.io.write_volume` would. Neither holds more than a few planes at a time.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from adl_monai.data.nifti.file import is_gzip, open_stream
from adl_monai.data.nifti.header import Header, check_end, read_header, read_pieces, warn_of_geometry
from adl_monai.data.normalization import range_of_sample, sample_step
from adl_monai.data.output import check_room
from adl_monai.data.raw_voxels import Box, RawVoxels, lengths, slabs
from adl_monai.data.voxels import check_contrast, check_scale, count_not_finite, scaled, warn_lost_digits
from adl_monai.errors import OutputError, ScanFileError

_PIECE = 1 << 20  # voxels looked at in one go


@dataclass(frozen=True, eq=False)
class NiftiSource:
    """A checked volume on the disk.

    Attributes:
        path: The file.
        header: Its header.
        voxels: Where its stored voxels are read.
        lowest: The smallest value.
        highest: The largest value.
        mean: The mean of the values.
        sampled: The values that the robust range is taken of, in any order.
    """

    path: Path
    header: Header
    voxels: RawVoxels
    lowest: float
    highest: float
    mean: float
    sampled: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the volume, (i, j, k) as in the file."""
        return self.voxels.shape

    def read(self, box: Box) -> np.ndarray:
        """The values of a box: float32, slope and intercept applied, in Fortran order; from any thread.

        Raises:
            ScanFileError: If the file cannot be read, or became shorter.
        """
        values = np.empty(lengths(box), np.float32, order="F")
        try:
            for part, planes in slabs(box):
                values[:, :, planes] = scaled(self.voxels.read(part), self.header.slope, self.header.inter)
        except EOFError as error:
            raise ScanFileError(
                f"{self.path}: the file became shorter while it was read; leave it in peace."
            ) from error
        except OSError as error:
            raise ScanFileError(f"{self.path}: cannot be read ({error.strerror or error}); check the disk.") from error
        return values

    def robust_range(self, lower: float, upper: float) -> tuple[float, float]:
        """Offset and scale: to the bit what ``normalization.robust_range`` gives for the whole volume.

        Raises:
            ScanFileError: As there.
        """
        return range_of_sample(self.sampled, lambda: (self.lowest, self.highest), lower, upper)


@contextmanager
def open_nifti_source(path: Path, output: Path, time_series: bool = False) -> Iterator[NiftiSource]:
    """Check a NIfTI file of three axes as `read_nifti` does, with its errors and warnings, and give access to it.

    Args:
        path: The file.
        output: What will be made from it: a .nii.gz file is inflated into this output's folder.
        time_series: Take a file of four axes too, its volumes stacked along the third one.

    Raises:
        UsageError: If there is no such file.
        ScanFileError: For what `read_nifti` refuses.
        OutputError: If the disk has no room for the inflated voxels.
    """
    with ExitStack() as opened:
        with open_stream(path) as stream:
            header = read_header(stream, path, time_series).stacked()
            shape = as_3d(header)
            size = math.prod(shape) * header.dtype.itemsize
            inflated = opened.enter_context(unnamed_file(output, size)) if is_gzip(path) else None
            survey = _Survey(header, shape)
            for piece in read_pieces(stream, size, _PIECE * header.dtype.itemsize, path):
                survey.look_at(np.frombuffer(piece, header.dtype))
                if inflated is not None:
                    _keep(inflated, piece, output)
            check_end(stream, path)
        check_scale(path, survey.broken, survey.beyond, math.prod(shape), header.slope, header.inter)
        check_contrast(path, (float(survey.lowest), float(survey.highest)), lambda: survey.stored)
        warn_of_geometry(header, path)
        extremes = np.array([survey.lowest, survey.highest], np.float32)
        warn_lost_digits(extremes, header.dtype, path, header.slope)
        file, offset = (opened.enter_context(path.open("rb")), len(header.raw)) if inflated is None else (inflated, 0)
        voxels = RawVoxels(file, offset, shape, header.dtype)
        mean = survey.total / math.prod(shape)
        yield NiftiSource(path, header, voxels, float(survey.lowest), float(survey.highest), mean, survey.sampled)


def as_3d(header: Header) -> tuple[int, int, int]:
    """The shape of a volume of three axes.

    Raises:
        ValueError: For a 2D image; its caller has enough memory for that.
    """
    if len(header.shape) != 3:
        raise ValueError(f"a NIfTI image of shape {header.shape} given; expected three axes.")
    return header.shape[0], header.shape[1], header.shape[2]


@contextmanager
def unnamed_file(output: Path, size: int) -> Iterator[IO[bytes]]:
    """An empty file for ``size`` bytes in an output's folder, without a name: however the program ends, it is gone.

    Raises:
        OutputError: If the disk has no room for them, or the file cannot be made.
    """
    check_room(output, size)
    try:
        file = tempfile.TemporaryFile(dir=output.parent)  # noqa: SIM115  # closed below
    except OSError as error:
        raise _not_written(output, error) from error
    try:
        yield file
    finally:
        with suppress(OSError):  # what a full disk did not take is of no use any more
            file.close()


def _keep(file: IO[bytes], piece: bytearray, output: Path) -> None:
    try:
        file.write(piece)
        file.flush()
    except OSError as error:  # here, as the stream around would take it for a fault of the scan's disk
        raise _not_written(output, error) from error


def _not_written(output: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{output}: could not be written ({error.strerror or error}): its uncompressed voxels need a place beside it "
        "meanwhile. Make room or choose another place (-o); nothing was left behind."
    )


class _Survey:
    """What one pass over the voxels, first axis fastest, tells of the whole volume."""

    def __init__(self, header: Header, shape: tuple[int, int, int]) -> None:
        self.lowest, self.highest = np.float32(np.inf), np.float32(-np.inf)
        self.broken = self.beyond = 0
        self.total = 0.0
        self.stored: tuple[Any, Any] = np.inf, -np.inf
        self._scale = header.slope, header.inter
        self._places = _sampled_places(shape)
        self._passed = 0
        self.sampled = np.empty(len(self._places), np.float32)

    def look_at(self, stored: np.ndarray) -> None:
        """Take in the next voxels of the file."""
        values = scaled(stored, *self._scale)
        self.broken += count_not_finite(stored)
        self.beyond += count_not_finite(values)
        self.total += float(values.sum(dtype=np.float64))
        with np.errstate(invalid="ignore"):
            self.stored = min(self.stored[0], stored.min()), max(self.stored[1], stored.max())
            self.lowest, self.highest = min(self.lowest, values.min()), max(self.highest, values.max())
        first, last = np.searchsorted(self._places, [self._passed, self._passed + len(values)])
        self.sampled[first:last] = values[self._places[first:last] - self._passed]
        self._passed += len(values)


def _sampled_places(shape: tuple[int, int, int]) -> np.ndarray:
    """Where in the file the voxels of the robust range's sample stand, ascending.

    They are counted in C order, last axis fastest, as in an array in memory; the file runs the other way.
    """
    size = math.prod(shape)
    places = np.arange(0, size, sample_step(size))
    for start in range(0, len(places), _PIECE // 8):
        rows, columns, planes = np.unravel_index(places[start : start + _PIECE // 8], shape)
        places[start : start + _PIECE // 8] = rows + shape[0] * (columns + shape[1] * planes)
    places.sort()
    return places
