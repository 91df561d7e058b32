"""DICOM files as pydicom data sets, without quoting patients: its warnings, log and error texts hold elements' values.

A deflated file is inflated here, up to a limit: a few kilobytes can stand for gigabytes.
"""

from __future__ import annotations

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
)

from adl_monai.errors import ScanFileError

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
INFLATED_LIMIT = 2**30
_SILENT: ContextVar[bool] = ContextVar("pydicom_silent", default=False)
logging.getLogger("pydicom").addFilter(lambda record: not _SILENT.get())


@contextmanager
def discreet() -> Iterator[None]:
    """Drop what pydicom warns and logs meanwhile: it quotes the values of elements, a patient's name among them."""
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


def parse(path: Path, pixels: bool, tags: Sequence[str] | None = None) -> pydicom.Dataset | None:
    """Parse a file; None if it is not DICOM, or DICOM without an image. Use in `discreet`.

    Args:
        path: The file.
        pixels: Whether to read the pixels and what follows them.
        tags: Keywords of the elements to read; None reads all.

    Raises:
        ScanFileError: If the image is cut short, or inflates to more than `INFLATED_LIMIT` bytes; pydicom raises nearly
            anything else on damaged files.
    """
    with path.open("rb") as file:
        prefixed = file.read(132)[128:] == b"DICM"
    if not prefixed and path.suffix.lower() not in DICOM_SUFFIXES:
        return None
    source: Path | DicomBytesIO = path
    if prefixed:
        syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
        if syntax == DeflatedExplicitVRLittleEndian:
            source = _inflate(path)
    try:
        dataset = pydicom.dcmread(
            source,
            force=not prefixed,
            stop_before_pixels=not pixels,
            specific_tags=None if tags is None else list(tags),
        )
        if not prefixed:
            dataset.file_meta.TransferSyntaxUID = _guessed_syntax(dataset)
        is_image = "Rows" in dataset or "Image Storage" in pydicom.uid.UID(dataset.get("SOPClassUID") or "").name
    except Exception:
        if prefixed:
            raise
        return None  # a foreign file under a DICOM suffix
    if is_image and "Rows" not in dataset:
        raise ScanFileError(f"{path}: this DICOM image ends before its Rows and Columns; it is cut short.")
    return dataset if is_image else None


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
