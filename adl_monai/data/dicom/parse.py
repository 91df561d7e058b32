"""DICOM files as pydicom data sets, without quoting patients: its warnings, log and error texts hold elements' values.

A deflated file is inflated here, up to a limit: a few kilobytes can stand for gigabytes.
"""

from __future__ import annotations

import io
import logging
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import pydicom
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_preamble
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from adl_monai.errors import ScanFileError

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
INFLATED_LIMIT = 2**30
_SILENT: ContextVar[bool] = ContextVar("pydicom_silent", default=False)


def _is_allowed(record: logging.LogRecord) -> bool:
    return not _SILENT.get()


@contextmanager
def discreet() -> Iterator[None]:
    """Drop what pydicom warns and logs meanwhile: it quotes the values of elements, a patient's name among them."""
    for name in list(logging.root.manager.loggerDict):  # a logger's filter does not see what its children log
        if name.split(".")[0] == "pydicom":
            logging.getLogger(name).addFilter(_is_allowed)
    token = _SILENT.set(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _SILENT.reset(token)


def is_dicom_file(path: Path) -> bool:
    """Whether a file has the DICOM prefix or a DICOM suffix; an index of a disc (DICOMDIR) is none."""
    if path.name.upper() == "DICOMDIR" or path.name.startswith(".") or not path.is_file():
        return False
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


class _Bounded(io.BufferedReader):
    """A file whose ``read`` allocates no more than it holds: damaged DICOM elements claim up to 4 GiB."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        """Up to ``size`` bytes."""
        rest = max(0, self._size - self.tell())
        return super().read(rest if size is None or size < 0 else min(size, rest))


def parse(path: Path, pixels: bool, tags: Sequence[str] | None = None) -> pydicom.Dataset | None:
    """Parse a file; None if it is not DICOM, or DICOM without an image. Use in `discreet`.

    Args:
        path: The file.
        pixels: Whether to read the pixels and what follows them.
        tags: Keywords of the elements to read; None reads all.

    Raises:
        ScanFileError: If the image is cut short, or inflates to more than `INFLATED_LIMIT` bytes, or a file that says
            by its name that it is DICOM holds neither DICOM nor text; pydicom raises nearly anything else on damaged
            files.
    """
    with path.open("rb") as file:
        start = file.read(1024)
    prefixed = start[128:132] == b"DICM"
    if not prefixed and path.suffix.lower() not in DICOM_SUFFIXES and start[132:136] != b"\2\0\0\0":
        return None
    with _Bounded(path) as file:
        source: _Bounded | DicomBytesIO = file
        if prefixed:
            file.seek(132)
            meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
            if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                source = _inflate(path)
            file.seek(0)
        try:
            dataset: pydicom.Dataset = pydicom.dcmread(
                source,
                force=not prefixed,
                stop_before_pixels=not pixels,
                specific_tags=None if tags is None else list(tags),
            )
            if not prefixed:
                dataset.file_meta.TransferSyntaxUID = _guessed_syntax(dataset)
            # The class stands twice; damage to one of the two must not turn a slice into something to pass over.
            classes = (dataset.get("SOPClassUID"), dataset.file_meta.get("MediaStorageSOPClassUID"))
            is_image = "Rows" in dataset or any("Image Storage" in pydicom.uid.UID(uid or "").name for uid in classes)
        except Exception:
            if prefixed:
                raise
            dataset, is_image = pydicom.Dataset(), False
    if is_image and "Rows" not in dataset:
        raise ScanFileError(f"{path}: this DICOM image ends before its Rows and Columns; it is cut short.")
    # A slice at the end of a series would vanish without leaving a gap.
    if not is_image and b"\0" in start and not _is_whole(dataset):
        raise ScanFileError(f"{path}: this DICOM file is damaged or cut short; copy it again, or move it elsewhere.")
    return dataset if is_image else None


def _is_whole(dataset: pydicom.Dataset) -> bool:
    """Whether an object without an image is of a kind known to have none, or at least says whose series it is in."""
    meta = getattr(dataset, "file_meta", pydicom.Dataset())
    kinds = [pydicom.uid.UID(str(item)) for item in (meta.get("MediaStorageSOPClassUID"), dataset.get("SOPClassUID"))]
    is_index = kinds[0] == MediaStorageDirectoryStorage
    return is_index or kinds[1].name != kinds[1] or "SeriesInstanceUID" in dataset


def _inflate(path: Path) -> DicomBytesIO:
    """The file as it would be without deflation."""
    with path.open("rb") as file:
        read_preamble(file, force=False)
        meta = pydicom.filereader._read_file_meta_info(file)
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            body = inflater.decompress(file.read(), INFLATED_LIMIT)
        except zlib.error as error:
            raise ScanFileError(
                f"{path}: the deflated data set is damaged ({error}); copy the file again from its source."
            ) from error
    if inflater.unconsumed_tail:
        raise ScanFileError(
            f"{path}: the deflated data set holds more than {INFLATED_LIMIT >> 20} MiB; no image of this size is read. "
            "Convert the file to Explicit VR Little Endian (dcmconv does) if it is genuine."
        )
    if not inflater.eof:
        raise ScanFileError(f"{path}: the deflated data set is cut short; copy the file again from its source.")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plain = DicomBytesIO()
    plain.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(plain, meta, enforce_standard=False)
    plain.write(body)
    plain.seek(0)
    return plain


def _guessed_syntax(dataset: pydicom.Dataset) -> pydicom.uid.UID:
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian
