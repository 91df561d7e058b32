"""The DICOM headers that reading needs: parsed with pydicom, without pixels and without quoting patients.

Only the elements listed here are read. pydicom's warnings, log and error texts quote values, so they are dropped.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from adl_monai.errors import ScanFileError

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_TAGS = [
    "SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "PatientID", "FrameOfReferenceUID", "Rows",
    "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing",
    "SpacingBetweenSlices", "SliceThickness", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "NumberOfFrames", "PerFrameFunctionalGroupsSequence", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
]  # fmt: skip
_CONVERT = "Convert it to NIfTI (dcm2niix) and try again."
_SILENT: ContextVar[bool] = ContextVar("pydicom_silent", default=False)
logging.getLogger("pydicom").addFilter(lambda record: not _SILENT.get())


@dataclass(frozen=True, eq=False)
class SliceHeader:
    """What one DICOM image says about itself; ``None`` where the element is absent or empty.

    ``fault`` says why the image cannot be read here (colour, multi-frame, ...); it matters only if it is chosen.
    """

    path: Path
    series_uid: str
    series_number: int | None
    modality: str
    patient_id: str
    frame_of_reference: str
    rows: int
    columns: int
    position: np.ndarray | None
    orientation: np.ndarray | None
    pixel_spacing: np.ndarray | None
    slice_step: float | None
    slope: float
    intercept: float
    fault: str | None


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


def read_header(path: Path) -> SliceHeader | None:
    """The header of an image; None for anything that is no DICOM image.

    Raises:
        ScanFileError: If the file cannot be read, or its header is damaged.
    """
    try:
        with discreet():
            dataset = parse(path, pixels=False)
            return None if dataset is None else _slice_header(dataset, path)
    except ScanFileError:
        raise
    except OSError as error:
        raise ScanFileError(f"{path}: cannot be read ({error.strerror or type(error).__name__}).") from error
    except Exception as error:  # pydicom's parsers raise nearly anything on damaged files, and their text may quote it
        raise ScanFileError(f"{path}: the DICOM header is damaged ({type(error).__name__}).") from None


class _Bounded(io.BufferedReader):
    """A file whose ``read`` allocates no more than it holds: damaged DICOM elements claim up to 4 GiB."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        """Up to ``size`` bytes."""
        rest = max(0, self._size - self.tell())
        return super().read(rest if size is None or size < 0 else min(size, rest))


def parse(path: Path, pixels: bool) -> pydicom.Dataset | None:
    """Parse a file, with its pixels or without; None if it is not DICOM, or DICOM without an image. Use in `discreet`.

    Raises:
        ScanFileError: If the image is deflated or cut short, or a file that says by its name that it is DICOM holds
            neither DICOM nor text; pydicom raises nearly anything else on damaged files.
    """
    with path.open("rb") as file:
        start = file.read(1024)
    prefixed = start[128:132] == b"DICM"
    if not prefixed and path.suffix.lower() not in DICOM_SUFFIXES and start[132:136] != b"\2\0\0\0":
        return None
    with _Bounded(path) as file:
        if prefixed:
            file.seek(132)
            meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
            syntax = meta.get("TransferSyntaxUID")
            if syntax == DeflatedExplicitVRLittleEndian:
                raise ScanFileError(f"{path}: the transfer syntax {syntax.name} is not supported yet. {_CONVERT}")
            file.seek(0)
        try:
            dataset: pydicom.Dataset = pydicom.dcmread(
                file, force=not prefixed, stop_before_pixels=not pixels, specific_tags=None if pixels else _TAGS
            )
            if not prefixed:
                dataset.file_meta.TransferSyntaxUID = _guessed_syntax(dataset)
            is_image = "Rows" in dataset or "Image Storage" in pydicom.uid.UID(dataset.get("SOPClassUID") or "").name
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


def _guessed_syntax(dataset: pydicom.Dataset) -> pydicom.uid.UID:
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _slice_header(dataset: pydicom.Dataset, path: Path) -> SliceHeader:
    number = dataset.get("SeriesNumber")
    step = dataset.get("SpacingBetweenSlices") or dataset.get("SliceThickness")
    return SliceHeader(
        path=path,
        series_uid=str(dataset.get("SeriesInstanceUID", "")),
        series_number=None if number is None else int(number),
        modality=str(dataset.get("Modality", "")),
        patient_id=str(dataset.get("PatientID", "")),
        frame_of_reference=str(dataset.get("FrameOfReferenceUID", "")),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        position=_numbers(dataset, "ImagePositionPatient"),
        orientation=_numbers(dataset, "ImageOrientationPatient"),
        pixel_spacing=_first(_numbers(dataset, "PixelSpacing"), _numbers(dataset, "ImagerPixelSpacing")),
        slice_step=None if step is None else abs(float(step)),
        slope=float(_first(dataset.get("RescaleSlope"), 1.0)),
        intercept=float(_first(dataset.get("RescaleIntercept"), 0.0)),
        fault=_fault(dataset, path),
    )


def _numbers(dataset: pydicom.Dataset, keyword: str) -> np.ndarray | None:
    value = dataset.get(keyword)
    return None if value is None or value == "" else np.atleast_1d(np.array(value, np.float64))


def _first(value: Any, fallback: Any) -> Any:
    return fallback if value is None else value


def _fault(dataset: pydicom.Dataset, path: Path) -> str | None:
    """Why this image cannot be read here, as a message; None if it can."""
    frames = dataset.get("NumberOfFrames")
    if "PerFrameFunctionalGroupsSequence" in dataset or (frames is not None and int(frames) != 1):
        return f"{path}: multi-frame images ({frames} frames) are not supported yet. {_CONVERT}"
    photometric = dataset.get("PhotometricInterpretation")
    if dataset.get("SamplesPerPixel", 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return f"{path}: PhotometricInterpretation is {photometric}; expected grey (MONOCHROME1 or MONOCHROME2)."
    if dataset.get("ModalityLUTSequence"):
        return f"{path}: a Modality LUT Sequence is not supported yet. {_CONVERT}"
    allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if allocated not in (8, 16, 32) or not 1 < bits <= allocated or dataset.get("HighBit", bits - 1) != bits - 1:
        return (
            f"{path}: BitsAllocated {allocated}, BitsStored {bits}, HighBit {dataset.get('HighBit')}; expected 8, 16 "
            f"or 32 bits with the stored ones lowest. {_CONVERT}"
        )
    if int(dataset.Rows) < 1 or int(dataset.Columns) < 1:
        return f"{path}: Rows is {dataset.Rows} and Columns {dataset.Columns}; expected at least 1."
    scale = [float(_first(dataset.get(name), 1.0)) for name in ("RescaleSlope", "RescaleIntercept")]
    if scale[0] == 0 or not np.isfinite(scale).all():
        return (
            f"{path}: RescaleSlope is {scale[0]:g}, RescaleIntercept {scale[1]:g}; expected finite numbers and a slope "
            "other than 0. Correct the header."
        )
    return None
