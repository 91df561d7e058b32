"""The NIfTI header: parsed from bytes, checked field by field before a single voxel is allocated."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from adl_monai.data.geometry import affine_fault, complete_plane, same_affine, spacing_from_affine
from adl_monai.errors import OutputError, ScanFileError

logger = logging.getLogger("adl_monai")

_MAGIC_1, _MAGIC_2 = b"n+1\0", b"n+2\0\r\n\x1a\n"
_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_REFUSED_TYPES = {
    1: "1-bit", 32: "complex64", 128: "RGB", 1536: "float128", 1792: "complex128", 2048: "complex256", 2304: "RGBA",
}  # fmt: skip
_DEFLATE_MAX_RATIO = 1032  # deflate cannot expand further
_LAST_FORM_CODE = 5  # "template"
_CHUNK = 1 << 24
_MOST_PADDING = 4096  # zero bytes behind the voxels, as some writers fill up a block
_MM_PER_UNIT = {1: 1e3, 2: 1.0, 3: 1e-3}  # xyzt_units: metre, millimetre, micron


@dataclass(frozen=True, eq=False)
class Header:
    """A checked header: ``raw`` holds every byte before the voxels; only a time series' ``shape`` has four axes."""

    fields: Nifti1Header
    raw: bytes
    shape: tuple[int, ...]
    dtype: np.dtype
    slope: float
    inter: float
    affine: np.ndarray

    def stacked(self) -> Header:
        """The same bytes seen as one volume: those of a time series one upon the other, as they lie in the file."""
        return replace(self, shape=(*self.shape[:2], math.prod(self.shape[2:]))) if len(self.shape) > 3 else self


def read_header(stream: IO[bytes], path: Path, time_series: bool = False) -> Header:
    """Parse and check everything before the voxels; leaves the stream at the first voxel.

    Args:
        stream: At its first byte.
        path: Of the file.
        time_series: Whether a fourth axis is allowed.

    Raises:
        ScanFileError: Naming the field at fault.
    """
    start = stream.read(Nifti1Header.sizeof_hdr)
    if start[344:348] == _MAGIC_1:
        kind: type[Nifti1Header] = Nifti1Header
    elif start[4:12] == _MAGIC_2:
        kind = Nifti2Header
        start += stream.read(Nifti2Header.sizeof_hdr - len(start))
    else:
        raise ScanFileError(f"{path}: {_describe_non_nifti(start)}")
    size = kind.sizeof_hdr
    orders = [order for order in "<>" if start[:4] == np.array(size, f"{order}i4").tobytes()]
    if not orders or len(start) < size:
        raise ScanFileError(
            f"{path}: header field sizeof_hdr is {int.from_bytes(start[:4], 'little')}, expected {size}; "
            "the header is damaged."
        )
    fields = kind(start, orders[0], check=False)
    shape = _shape(fields, path, time_series)
    dtype = _dtype(fields, path)
    offset = float(fields["vox_offset"])
    if not (offset.is_integer() and offset >= size + 4):
        raise ScanFileError(f"{path}: header field vox_offset is {offset:g}, expected {size + 4} or more.")
    _check_claim(path, int(offset) + math.prod(shape) * dtype.itemsize)
    slope, inter = _scale(fields, path)
    affine = _affine(fields, shape, path)
    extensions = read_exactly(stream, int(offset) - size, path)
    return Header(fields, start + bytes(extensions), shape, dtype, slope, inter, affine)


def _describe_non_nifti(start: bytes) -> str:
    if start[344:348] == b"ni1\0" or start[4:8] == b"ni2\0":
        return "this is the header of a .hdr/.img pair; convert it to one .nii.gz file (nibabel, dcm2niix)."
    if start[:2] == b"\x1f\x8b":
        return "this is a gzip stream under a name without .gz; rename it to end in .nii.gz."
    return "header field magic is not that of a NIfTI file (n+1 or n+2); the file is damaged or of another format."


def _shape(fields: Nifti1Header, path: Path, time_series: bool) -> tuple[int, ...]:
    dim = [int(length) for length in fields["dim"]]
    if not 2 <= dim[0] <= 7:
        raise ScanFileError(f"{path}: header field dim[0] is {dim[0]}; expected 2 or 3 dimensions.")
    for axis in range(1, dim[0] + 1):
        if dim[axis] <= 0:
            raise ScanFileError(f"{path}: header field dim[{axis}] is {dim[axis]}; expected at least 1.")
    shape = tuple(dim[1 : dim[0] + 1])
    if math.prod(shape[3:]) == 1:
        return shape[:3]
    if math.prod(shape[4:]) == 1 and time_series:
        return shape[:4]
    way_out = "Split it into single volumes (for example fslsplit, or nibabel's four_to_three)"
    if math.prod(shape[4:]) == 1:
        way_out += f", or denoise each of the {shape[3]} by itself with adl-monai infer --time-series"
    raise ScanFileError(
        f"{path}: the image is {len(shape)}D with shape {shape}; expected one 2D or 3D volume. {way_out}."
    )


def _dtype(fields: Nifti1Header, path: Path) -> np.dtype:
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    if code not in _TYPES:
        name = _REFUSED_TYPES.get(code, "an unknown type")
        raise ScanFileError(f"{path}: header field datatype is {code} ({name}); expected real or integer voxels.")
    dtype = np.dtype(_TYPES[code]).newbyteorder(fields.endianness)
    if bits != dtype.itemsize * 8:
        raise ScanFileError(
            f"{path}: header field bitpix is {bits}, but datatype {code} ({dtype.name}) has {dtype.itemsize * 8} bits."
        )
    return dtype


def _check_claim(path: Path, claimed: int) -> None:
    held = path.stat().st_size
    if path.name.lower().endswith(".gz"):
        held *= _DEFLATE_MAX_RATIO
    if claimed > held:
        raise ScanFileError(
            f"{path}: header fields dim and vox_offset claim {claimed} bytes, the file holds at most {held}; "
            "it is cut short or its header is damaged."
        )


def _scale(fields: Nifti1Header, path: Path) -> tuple[float, float]:
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0:
        return 1.0, 0.0  # the standard's "no scaling"; scl_inter is then ignored
    for name, value in (("scl_slope", slope), ("scl_inter", inter)):
        if not math.isfinite(value):
            raise ScanFileError(f"{path}: header field {name} is {value}; expected a finite number.")
    return slope, inter


def _affine(fields: Nifti1Header, shape: tuple[int, ...], path: Path) -> np.ndarray:
    for name in ("sform_code", "qform_code"):  # readers differ in which affine they take then
        if not 0 <= int(fields[name]) <= _LAST_FORM_CODE:
            raise ScanFileError(
                f"{path}: header field {name} is {int(fields[name])}, expected 0 to {_LAST_FORM_CODE}; correct it."
            )
    try:
        affine = np.asarray(fields.get_best_affine(), np.float64)
    except (HeaderDataError, ValueError) as error:
        raise ScanFileError(f"{path}: the qform in the header is unusable ({error}).") from error
    if math.prod(shape[2:3]) == 1:
        affine = complete_plane(affine)
    fault = affine_fault(affine)
    if fault:
        name = "sform" if fields["sform_code"] > 0 else "qform" if fields["qform_code"] > 0 else "pixdim"
        raise ScanFileError(f"{path}: the affine (from {name}) is {fault}; correct the header.")
    return np.diag([*[_MM_PER_UNIT.get(int(fields["xyzt_units"]) & 7, 1.0)] * 3, 1.0]) @ affine


def warn_of_geometry(header: Header, path: Path) -> None:
    """Log what is odd about a readable geometry; it is carried to the output as it is."""
    fields = header.fields
    sform, qform = int(fields["sform_code"]), int(fields["qform_code"])
    if sform <= 0 and qform <= 0:
        logger.warning("%s: sform_code and qform_code are both 0; the position in the patient is a guess.", path)
    if sform > 0 and qform > 0:
        try:
            agree = same_affine(fields.get_qform(), fields.get_sform(), 1e-2)
        except (HeaderDataError, ValueError):
            agree = False
        if not agree:
            logger.warning("%s: sform and qform disagree; the sform is used and both are kept.", path)
    spacing = spacing_from_affine(fields.get_best_affine())[: len(header.shape)]
    if not np.allclose(spacing, fields["pixdim"][1 : len(spacing) + 1], rtol=1e-2):
        logger.warning("%s: pixdim disagrees with the affine's voxel size; the affine is used, both are kept.", path)


def set_type(fields: Nifti1Header, dtype: np.dtype) -> None:
    """Make ``fields`` describe voxels of ``dtype`` without a scale.

    Raises:
        OutputError: If NIfTI has no such type.
    """
    codes = {np.dtype(name): code for code, name in _TYPES.items()}
    native = dtype.newbyteorder("=")
    if native not in codes:
        raise OutputError(f"NIfTI files here hold {', '.join(t.name for t in codes)}; got {dtype.name}.")
    fields["datatype"], fields["bitpix"] = codes[native], native.itemsize * 8
    fields["scl_slope"], fields["scl_inter"] = 1, 0


def read_exactly(stream: IO[bytes], count: int, path: Path) -> bytearray:
    """The next ``count`` bytes; memory grows with what the stream holds, not with what its header claims.

    Raises:
        ScanFileError: If the stream ends before.
    """
    return next(read_pieces(stream, count, count, path), bytearray())


def read_pieces(stream: IO[bytes], count: int, piece: int, path: Path) -> Iterator[bytearray]:
    """The next ``count`` bytes as `read_exactly` reads them, ``piece`` (or, at the end, fewer) at a time.

    Raises:
        ScanFileError: If the stream ends before.
    """
    for start in range(0, count, max(piece, 1)):
        held = bytearray()
        while len(held) < min(piece, count - start):
            chunk = stream.read(min(_CHUNK, piece - len(held), count - start - len(held)))
            if not chunk:
                raise ScanFileError(
                    f"{path}: the voxels end after {start + len(held)} of {count} bytes; copy the file again from its "
                    "source."
                )
            held += chunk
        yield held


def check_end(stream: IO[bytes], path: Path) -> None:
    """Read the stream to its end, where gzip compares its checksum; only padding may stand behind the voxels.

    Raises:
        ScanFileError: If more than a few zero bytes follow: the header then describes a part of the image only.
    """
    rest = stream.read(_MOST_PADDING + 1)
    while chunk := stream.read(_CHUNK) if len(rest) <= _MOST_PADDING else b"":
        rest += chunk
    if len(rest) > _MOST_PADDING or rest.count(0) != len(rest):
        raise ScanFileError(
            f"{path}: the file goes on behind the voxels that header fields dim, bitpix and vox_offset claim; expected "
            "its end there. The header is damaged; copy the file again from its source."
        )
