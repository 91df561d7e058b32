"""The DICOM headers that reading needs: one for each image plane, whether it fills a file or is a frame of one.

Only the elements listed here are read. An enhanced multi-frame file (CT, MR, PET) keeps each frame's place and scale in
functional groups; its frames become planes like those of single-frame files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    RTDoseStorage,
    SegmentationStorage,
)

from adl_monai.data.derivation import names_this_tool
from adl_monai.data.dicom.parse import discreet, parse
from adl_monai.errors import ScanFileError

_TAGS = [
    "SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "PatientID", "FrameOfReferenceUID", "Rows",
    "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing",
    "SpacingBetweenSlices", "SliceThickness", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "NumberOfFrames", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "SamplesPerPixel",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "BurnedInAnnotation", "ContributingEquipmentSequence",
]  # fmt: skip
_ENHANCED = (
    EnhancedCTImageStorage, EnhancedMRImageStorage, EnhancedPETImageStorage, LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage, LegacyConvertedEnhancedPETImageStorage,
)  # fmt: skip
_NO_PICTURES = (RTDoseStorage, SegmentationStorage)
_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}
_CONVERT = "Convert it to NIfTI (dcm2niix) and try again."
_Get = Callable[[str], Any]


@dataclass(frozen=True, eq=False)
class SliceHeader:
    """What one DICOM image plane says about itself; ``None`` where the element is absent or empty.

    ``frame`` counts from 0 and ``frames`` is how many the file holds. ``padding`` is the range of stored values that
    stand for "no image here". ``dtype`` and ``bits`` (the lowest ones, sign included) are those of stored values. With
    ``has_lut`` a Modality LUT makes the values: slope and intercept are then 1 and 0, dtype and bits the LUT's.
    ``made_here`` marks a result of this program. ``fault`` says why the image cannot be read here (colour, cine, ...);
    it matters only if it is chosen.
    """

    path: Path
    frame: int
    frames: int
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
    dtype: np.dtype
    bits: int
    padding: tuple[int, int] | None
    has_lut: bool
    burned_in: bool
    made_here: bool
    fault: str | None

    @property
    def label(self) -> str:
        """The path, with the frame's number where there are several."""
        return str(self.path) + (f" (frame {self.frame + 1})" if self.frames > 1 else "")

    @property
    def name(self) -> str:
        """`label` without the folder."""
        return self.label[len(str(self.path)) - len(self.path.name) :]


def read_headers(path: Path) -> list[SliceHeader]:
    """The headers of the image planes in a file; none for anything that is no DICOM image.

    Raises:
        ScanFileError: If the file cannot be read, or its header is damaged.
    """
    try:
        with discreet():
            dataset = parse(path, pixels=False, tags=_TAGS)
            return [] if dataset is None else _slice_headers(dataset, path)
    except ScanFileError:
        raise
    except OSError as error:
        raise ScanFileError(f"{path}: cannot be read ({error.strerror or type(error).__name__}).") from error
    except Exception as error:  # pydicom's parsers raise nearly anything on damaged files, and their text may quote it
        raise ScanFileError(f"{path}: the DICOM header is damaged ({type(error).__name__}).") from None


def _slice_headers(dataset: pydicom.Dataset, path: Path) -> list[SliceHeader]:
    fault = _kind_fault(dataset, path)
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if fault or not frames:
        return [_slice_header(dataset, path, dataset.get, 0, 1, fault)]
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    return [
        _slice_header(dataset, path, _from_groups(dataset, (frame, shared)), index, len(frames), None)
        for index, frame in enumerate(frames)
    ]


def _from_groups(dataset: pydicom.Dataset, groups: tuple[pydicom.Dataset, ...]) -> _Get:
    """Looks up an element of one frame: its own functional groups, then the shared ones, else the data set."""

    def get(keyword: str) -> Any:
        if keyword not in _GROUPS:
            return dataset.get(keyword)
        items = (group.get(_GROUPS[keyword]) for group in groups)
        return next((item[0].get(keyword) for item in items if item), None)

    return get


def _slice_header(
    dataset: pydicom.Dataset, path: Path, get: _Get, frame: int, frames: int, fault: str | None
) -> SliceHeader:
    number = dataset.get("SeriesNumber")
    step = get("SpacingBetweenSlices") or get("SliceThickness")
    has_lut = bool(dataset.get("ModalityLUTSequence"))
    bits = _lut_bits(dataset) if has_lut else int(dataset.BitsStored)
    return SliceHeader(
        path=path,
        frame=frame,
        frames=frames,
        series_uid=str(dataset.get("SeriesInstanceUID", "")),
        series_number=None if number is None else int(number),
        modality=str(dataset.get("Modality", "")),
        patient_id=str(dataset.get("PatientID", "")),
        frame_of_reference=str(dataset.get("FrameOfReferenceUID", "")),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        position=_numbers(get("ImagePositionPatient")),
        orientation=_numbers(get("ImageOrientationPatient")),
        pixel_spacing=_first(_numbers(get("PixelSpacing")), _numbers(get("ImagerPixelSpacing"))),
        slice_step=None if step is None else abs(float(step)),
        slope=1.0 if has_lut else float(_first(get("RescaleSlope"), 1.0)),
        intercept=0.0 if has_lut else float(_first(get("RescaleIntercept"), 0.0)),
        dtype=np.dtype("u1" if bits <= 8 else "u2") if has_lut else _stored_type(dataset),
        bits=bits,
        padding=_padding(dataset),
        has_lut=has_lut,
        burned_in=str(dataset.get("BurnedInAnnotation", "")).upper() == "YES",
        made_here=names_this_tool(dataset),
        fault=fault or (_lut_fault(bits, path) if has_lut else _scale_fault(get, path)),
    )


def _numbers(value: Any) -> np.ndarray | None:
    return None if value is None or value == "" else np.atleast_1d(np.array(value, np.float64))


def _first(value: Any, fallback: Any) -> Any:
    return fallback if value is None else value


def _padding(dataset: pydicom.Dataset) -> tuple[int, int] | None:
    """PixelPaddingValue and PixelPaddingRangeLimit, in order, as the stored type has them."""
    values = [dataset.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if not isinstance(values[0], int):
        return None
    # Some files write -2000 as 63536: the bits are what counts.
    stored = _stored_type(dataset)
    numbers = [int(np.array(value).astype(stored)) for value in values if isinstance(value, int)]
    return min(numbers), max(numbers)


def _stored_type(dataset: pydicom.Dataset) -> np.dtype:
    sizes = {8: 1, 16: 2, 32: 4}  # any other is refused as a fault
    return np.dtype(f"{'i' if dataset.PixelRepresentation == 1 else 'u'}{sizes.get(int(dataset.BitsAllocated), 1)}")


def _kind_fault(dataset: pydicom.Dataset, path: Path) -> str | None:
    """Why images of this kind cannot be read here, as a message; None if they can."""
    frames, groups = dataset.get("NumberOfFrames"), dataset.get("PerFrameFunctionalGroupsSequence")
    kind = pydicom.uid.UID(dataset.get("SOPClassUID") or "")
    if kind in _NO_PICTURES:
        return f"{path}: {kind.name} holds no picture of the patient; expected an image to denoise."
    if "PerFrameFunctionalGroupsSequence" in dataset or (frames is not None and int(frames) != 1):
        if kind not in _ENHANCED or not groups:
            named = kind.name if kind.name != kind else "of an unknown class"
            return (
                f"{path}: this multi-frame image ({named}, {frames} frames) does not say where its frames lie; "
                f"expected an enhanced CT, MR or PET image with functional groups for each frame. {_CONVERT}"
            )
        if len(groups) != int(_first(frames, 1)):
            return f"{path}: NumberOfFrames is {frames}, but {len(groups)} frames are described; the file is damaged."
    photometric = dataset.get("PhotometricInterpretation")
    if dataset.get("SamplesPerPixel", 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return f"{path}: PhotometricInterpretation is {photometric}; expected grey (MONOCHROME1 or MONOCHROME2)."
    allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if allocated not in (8, 16, 32) or not 1 < bits <= allocated or dataset.get("HighBit", bits - 1) != bits - 1:
        return (
            f"{path}: BitsAllocated {allocated}, BitsStored {bits}, HighBit {dataset.get('HighBit')}; expected 8, 16 "
            f"or 32 bits with the stored ones lowest. {_CONVERT}"
        )
    if int(dataset.Rows) < 1 or int(dataset.Columns) < 1:
        return f"{path}: Rows is {dataset.Rows} and Columns {dataset.Columns}; expected at least 1."
    return None


def _scale_fault(get: _Get, path: Path) -> str | None:
    scale = [float(_first(get(name), 1.0)) for name in ("RescaleSlope", "RescaleIntercept")]
    if scale[0] != 0 and np.isfinite(scale).all():
        return None
    return (
        f"{path}: RescaleSlope is {scale[0]:g}, RescaleIntercept {scale[1]:g}; expected finite numbers and a slope "
        "other than 0. Correct the header."
    )


def _lut_bits(dataset: pydicom.Dataset) -> int:
    descriptor = dataset.ModalityLUTSequence[0].get("LUTDescriptor")
    return int(descriptor[2]) if descriptor is not None and len(descriptor) == 3 else 0


def _lut_fault(bits: int, path: Path) -> str | None:
    if 8 <= bits <= 16:
        return None
    return f"{path}: the Modality LUT's descriptor gives {bits} bits; expected 8 to 16. Correct the header."
