"""The NIfTI door: .nii and .nii.gz, versions 1 and 2, read strictly and written with the source's own header bytes.

Reading checks what common readers let pass: the gzip checksum at the end of the stream, the header's sizes against the
file's, the scale, the affine. Writing like a source copies every byte before its voxels (codes, units, pixdim,
descriptions, extensions, byte order), so nothing of the geometry is computed anew.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from adl_monai.data.geometry import same_affine
from adl_monai.data.missing_voxels import keeps_missing
from adl_monai.data.nifti.header import Header, check_end, read_exactly, read_header, set_type, warn_of_geometry
from adl_monai.data.volume import Volume, WritePlan, require_affine, require_shape
from adl_monai.data.voxels import count_not_finite, keeps_type, quantise, to_float32, warn_lost_digits
from adl_monai.errors import ScanFileError
from adl_monai.files import require_file

_GZIP_LEVEL = 1  # as nibabel: on scans, higher levels cost time and save next to nothing


def read_nifti(path: Path, nan_policy: str = "refuse") -> Volume:
    """Read a NIfTI image of one volume.

    Trailing dimensions of length 1 are dropped from the array (and written back, see `plan_nifti`). Spatial units of
    metres or microns are converted to mm in the affine.

    Args:
        path: The file.
        nan_policy: ``keep`` takes NaN and infinite voxels for padding, unless there is nothing else.

    Raises:
        UsageError: If there is no such file, or no such policy.
        ScanFileError: If the file is damaged, claims more than it holds, has more than one volume, is complex or
            colour, has NaN or infinite voxels, or an unusable scale or affine.
    """
    header, volume = _read(path, keeps_missing(nan_policy))
    warn_of_geometry(header, path)
    proper = volume.array if volume.padding is None else volume.array[~volume.padding]
    warn_lost_digits(proper, header.dtype, path, header.slope)
    return volume


def reread_nifti(path: Path) -> Volume:
    """A file that was read before, its NaN and infinite voxels as padding; it is not warned of again."""
    return _read(path, keep=True)[1]


def plan_nifti(
    path: Path, array: np.ndarray, like: Path, dtype: str | np.dtype, missing: np.ndarray | None = None
) -> WritePlan:
    """Plan a file whose bytes before the voxels are those of ``like``.

    Args:
        path: Where the file will go; it says nothing of its content.
        array: Values, of the shape `read_nifti` gave for ``like``.
        like: The NIfTI source.
        dtype: ``same`` keeps the stored type, slope and intercept; a type (``float32``) changes only these fields:
            datatype, bitpix, scl_slope = 1, scl_inter = 0.
        missing: Where values are NaN or infinite; None for nowhere.
    """
    header = peek_header(like)
    require_shape(array, header.shape, like)
    return _plan(array, header_like(header, dtype), missing)


def peek_header(path: Path, time_series: bool = False) -> Header:
    """The checked header of a NIfTI file, whose voxels are not looked at; see `read_header`."""
    with open_stream(path) as stream:
        return read_header(stream, path, time_series)


def header_like(header: Header, dtype: str | np.dtype) -> Header:
    """The header of a copy with another type of voxels; ``dtype`` as in `plan_nifti`."""
    if keeps_type(dtype):
        return header
    fields = type(header.fields)(header.raw[: header.fields.sizeof_hdr], header.fields.endianness, check=False)
    file_dtype = np.dtype(dtype).newbyteorder(fields.endianness)
    set_type(fields, file_dtype)
    raw = fields.binaryblock + header.raw[fields.sizeof_hdr :]
    return Header(fields, raw, header.shape, file_dtype, 1.0, 0.0, header.affine)


def plan_nifti_from_affine(path: Path, array: np.ndarray, affine: np.ndarray, dtype: str | np.dtype) -> WritePlan:
    """Plan a new file with this RAS+ mm affine as sform and, unless it shears, as qform (both "scanner").

    Version 1, or 2 where an axis is too long for version 1. Slope 1, intercept 0, units mm.
    """
    require_affine(affine)
    file_dtype = np.dtype(dtype).newbyteorder("<")
    fields = (Nifti1Header if max(array.shape) <= np.iinfo(np.int16).max else Nifti2Header)(endianness="<")
    fields.set_data_shape(array.shape)
    set_type(fields, file_dtype)
    fields.set_sform(affine, code="scanner")
    fields.set_qform(affine, code="scanner", strip_shears=True)
    if not same_affine(fields.get_qform(), affine):
        fields["qform_code"] = 0
    fields.set_xyzt_units("mm")
    fields["magic"] = fields.single_magic
    fields["vox_offset"] = fields.single_vox_offset
    raw = fields.binaryblock.ljust(fields.single_vox_offset, b"\0")
    return _plan(array, Header(fields, raw, array.shape, file_dtype, 1.0, 0.0, fields.get_best_affine()))


def _plan(array: np.ndarray, header: Header, missing: np.ndarray | None = None) -> WritePlan:
    stored, clipped = quantise(array, header.dtype, header.slope, header.inter, missing=missing)
    expected = to_float32(stored, Path("the output"), header.slope, header.inter, missing)

    def save(path: Path) -> None:
        voxels = stored.reshape(-1, order="F").data.cast("B")
        with path.open("wb") as file:
            if not is_gzip(path):
                file.write(header.raw)
                file.write(voxels)
                return
            with compressing(file) as stream:
                stream.write(header.raw)
                stream.write(voxels)

    def load(path: Path) -> Volume:
        return _read(path, missing is not None)[1]

    return WritePlan(expected, header.affine, header.dtype, clipped, save, load)


def _read(path: Path, keep: bool) -> tuple[Header, Volume]:
    with open_stream(path) as stream:
        header = read_header(stream, path)
        voxels = read_exactly(stream, math.prod(header.shape) * header.dtype.itemsize, path)
        check_end(stream, path)
    stored = np.frombuffer(voxels, header.dtype).reshape(header.shape, order="F")
    missing = ~np.isfinite(stored) if keep and count_not_finite(stored) else None
    if missing is not None and missing.all():
        missing = None  # to be refused
    values = to_float32(stored, path, header.slope, header.inter, missing)
    return header, Volume(values, header.affine, header.dtype, "nifti", path, missing)


def is_gzip(path: Path) -> bool:
    """Whether a name says that its file is compressed."""
    return path.name.lower().endswith(".gz")


def compressing(file: IO[bytes]) -> gzip.GzipFile:
    """A stream that compresses into ``file``; no name and no time in it, so that equal scans give equal files."""
    return gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0)


@contextmanager
def open_stream(path: Path) -> Iterator[IO[bytes]]:
    """The uncompressed bytes of a NIfTI file, from the first.

    Raises:
        UsageError: If there is no such file.
        ScanFileError: Also from inside the block, if the file cannot be read or its gzip stream is damaged.
    """
    require_file(path)
    try:
        with gzip.open(path, "rb") if is_gzip(path) else path.open("rb") as stream:
            yield stream  # type: ignore[misc]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ScanFileError(
            f"{path}: the gzip stream is damaged or cut short ({error}); copy the file again from its source."
        ) from error
    except OSError as error:
        raise ScanFileError(f"{path}: cannot be read ({error.strerror or error}); check the disk.") from error
