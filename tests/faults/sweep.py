"""Seeded damage to small scans, and a judge of what reading and writing them back makes of it."""

from __future__ import annotations

import gzip
import io
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from adl_monai.data.io import read_volume, write_volume
from adl_monai.errors import AdlError

SECONDS = 10
FIELDS = [
    *("dim", "datatype", "bitpix", "pixdim", "vox_offset", "scl_slope", "scl_inter", "xyzt_units", "qform_code"),
    *("sform_code", "quatern_b", "qoffset_x", "srow_x", "srow_z", "sizeof_hdr", "magic", "intent_code"),
]
Damage = Callable[[bytes, np.random.Generator], bytes]


class Hang(BaseException):
    """Reading took too long; not an Exception, which somebody could catch."""


@dataclass(frozen=True)
class Source:
    """A sound scan: ``file`` is the one to damage, ``scan`` what is read (the file, or its folder)."""

    file: Path
    scan: Path
    whole: bytes

    @property
    def kind(self) -> str:
        return "series" if self.scan != self.file else "".join(self.file.suffixes)


def flip(raw: bytes, rng: np.random.Generator) -> bytes:
    """One bit."""
    damaged = bytearray(raw)
    bit = int(rng.integers(len(raw) * 8))
    damaged[bit // 8] ^= 1 << (bit % 8)
    return bytes(damaged)


def flip_header(raw: bytes, rng: np.random.Generator) -> bytes:
    """One to four bits of the first kilobyte."""
    damaged = bytearray(raw)
    for bit in rng.integers(min(len(raw), 1024) * 8, size=rng.integers(1, 5)):
        damaged[bit // 8] ^= 1 << int(bit % 8)
    return bytes(damaged)


def truncate(raw: bytes, rng: np.random.Generator) -> bytes:
    """Cut anywhere."""
    return raw[: int(rng.integers(len(raw)))]


def zero(raw: bytes, rng: np.random.Generator) -> bytes:
    """A range of zero bytes, as from a lost block."""
    damaged = bytearray(raw)
    start = int(rng.integers(len(raw)))
    stop = min(len(raw), start + int(rng.integers(1, 600)))
    damaged[start:stop] = bytes(stop - start)
    return bytes(damaged)


def repeat(raw: bytes, rng: np.random.Generator) -> bytes:
    """A range that stands twice."""
    start = int(rng.integers(len(raw)))
    stop = min(len(raw), start + int(rng.integers(1, 300)))
    return raw[:stop] + raw[start:]


def edit_nifti(raw: bytes, rng: np.random.Generator) -> bytes:
    """A header field of other values, extreme ones among them; the stream stays sound."""
    packed = raw[:2] == b"\x1f\x8b"
    content = bytearray(gzip.decompress(raw) if packed else raw)
    kind = Nifti1Header if content[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c") else Nifti2Header
    order = "<" if content[:1] != b"\0" else ">"
    fields = kind(bytes(content[: kind.sizeof_hdr]), order, check=False)
    name = str(rng.choice(FIELDS))
    value = fields[name].copy()
    if value.dtype.kind == "S":
        value = np.array(b"junk", value.dtype)
    else:
        extreme = [0, 1, 2, 3, -1, 7, 1e30, -1e30, np.nan, np.inf, 32767, 2**31 - 1, 1e-30, rng.integers(1, 99)]
        choice = extreme[int(rng.integers(len(extreme)))]
        flat = value.reshape(-1) if value.ndim else value.reshape(1)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flat[int(rng.integers(flat.size))] = np.array(choice).astype(value.dtype)
        value = flat.reshape(value.shape)
    fields[name] = value
    content[: kind.sizeof_hdr] = fields.binaryblock
    return gzip.compress(bytes(content), mtime=0) if packed else bytes(content)


def edit_dicom(raw: bytes, rng: np.random.Generator) -> bytes:
    """An element removed, or of another value, type or length."""
    dataset = pydicom.dcmread(io.BytesIO(raw))
    elements = [element for element in dataset if element.tag.group != 2]
    element = elements[int(rng.integers(len(elements)))]
    how = int(rng.integers(4))
    if how == 0:
        del dataset[element.tag]
    elif how == 1 and element.VR in ("AS", "CS", "DA", "DS", "IS", "LO", "PN", "SH", "TM", "UI"):
        odd: list[Any] = ["", "0", "-1", "1e308", "NaN", "x" * 70, "1\\2\\3", "1.2.3", "65536", "\\"]
        text = odd[int(rng.integers(len(odd)))].encode()
        dataset[element.tag] = pydicom.dataelem.RawDataElement(
            element.tag, element.VR, len(text), text + b" " * (len(text) % 2), 0, False, True
        )
    else:  # in the eight bytes before its value: tag, type, length
        damaged = bytearray(raw)
        place = raw.find(element.tag.group.to_bytes(2, "little") + element.tag.element.to_bytes(2, "little"))
        damaged[place + int(rng.integers(8))] = int(rng.integers(256))
        return bytes(damaged)
    written = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(written, enforce_file_format=False)
    return written.getvalue()


def damages(source: Source) -> list[Damage]:
    return [flip, flip_header, truncate, zero, repeat, edit_nifti if ".nii" in source.kind else edit_dicom]


def judge(source: Source, damaged: bytes, out: Path) -> str:
    """Read and write back a damaged scan: ``refused``, ``unchanged`` (nothing that matters was hit) or ``as stored``.

    Raises:
        AssertionError: For a wrong result, a message that is none, or a file left behind.
        Exception: Whatever comes out that is no AdlError; Hang after ten seconds.
    """
    source.file.write_bytes(damaged)
    target = out / "out.nii"
    like = source.scan if ".nii" in source.kind else None
    refusal = None
    try:
        with limited_time():
            volume = read_volume(source.scan)
            write_volume(target, volume.array, like=like, affine=volume.affine)
    except AdlError as error:
        refusal = str(error)
    if refusal is not None:
        assert str(source.scan) in refusal or target.name in refusal, f"no file is named: {refusal}"
        assert len(refusal) < 1500
        assert list(out.iterdir()) == [], "something was left behind"
        return "refused"
    assert [path.name for path in out.iterdir()] == [target.name]
    again = read_volume(target)
    target.unlink()
    assert np.array_equal(again.array, volume.array), "what was written is not what was read"
    if damaged == source.whole:
        return "unchanged"
    if source.kind == ".nii.gz":
        assert unpacked(damaged) == gzip.decompress(source.whole) or unpacked(damaged) == as_nibabel(source, volume)
        return "unchanged" if unpacked(damaged) == gzip.decompress(source.whole) else "as stored"
    if source.kind == ".nii":
        as_nibabel(source, volume)
    else:
        as_pydicom(source, volume)
    return "as stored"


def unpacked(raw: bytes) -> bytes:
    return gzip.decompress(raw)


def as_nibabel(source: Source, volume: Any) -> bytes:
    """Hold a volume to what nibabel reads; returns the file's bytes, inflated."""
    image = nib.load(source.file)
    values = np.asanyarray(image.dataobj).astype(np.float32)
    assert np.array_equal(volume.array, values.reshape(volume.array.shape, order="F")), "other voxels than nibabel's"
    factor = {1: 1e3, 3: 1e-3}.get(int(image.header["xyzt_units"]) & 7, 1.0)
    if volume.array.ndim == 3:
        assert np.allclose(volume.affine[:3], image.affine[:3] * factor, rtol=1e-5, equal_nan=True), "another affine"
    return gzip.decompress(source.file.read_bytes()) if source.kind == ".nii.gz" else source.file.read_bytes()


def as_pydicom(source: Source, volume: Any) -> None:
    """Hold a volume to the slices that pydicom reads: all of them are there, and none is another."""
    files = sorted(source.scan.iterdir()) if source.scan.is_dir() else [source.file]
    slices = volume.array[..., None] if volume.array.ndim == 2 else volume.array
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [values(pydicom.dcmread(io.BytesIO(path.read_bytes()), force=True)) for path in files]
    assert slices.shape[2] == len(expected), "a slice vanished in silence"
    for array in expected:
        found = (np.array_equal(slices[..., index], array) for index in range(slices.shape[2]))
        assert any(found), "other pixels than pydicom's"


def values(dataset: pydicom.Dataset) -> np.ndarray:
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    slope, inter = (dataset.get(name) for name in ("RescaleSlope", "RescaleIntercept"))
    stored = dataset.pixel_array.astype(np.float64)
    return (stored * float(1 if slope is None else slope) + float(0 if inter is None else inter)).T.astype(np.float32)


@contextmanager
def limited_time() -> Iterator[None]:
    def late(number: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
