"""The header of a derived DICOM image, made from its source's: what is kept, what is new, what is dropped.

PS3.3 C.7.6.1 (General Image), C.12.1.1 (SOP Common) and, for enhanced images, C.7.6.16.2.6 (Derivation Image).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
from pydicom.charset import CUSTOMIZABLE_CHARSET_VR
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    JPEG2000MC,
    PYDICOM_IMPLEMENTATION_UID,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    NuclearMedicineImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)

from adl_monai.data.derivation import TOOL, Derivation, describe
from adl_monai.data.dicom.header import SliceHeader
from adl_monai.data.dicom.private import kept_private
from adl_monai.version import __version__

_DROPPED = [
    "IconImageSequence", "DigitalSignaturesSequence", "MACParametersSequence", "EncryptedAttributesSequence",
    "DataSetTrailingPadding", "PixelDataProviderURL", "InstanceCreatorUID", "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData",
    "SOPInstanceUIDOfConcatenationSource",
]  # fmt: skip
_FRAME_TYPES = ("CTImageFrameTypeSequence", "MRImageFrameTypeSequence", "PETFrameTypeSequence")
_NEVER_SECONDARY = (PositronEmissionTomographyImageStorage, NuclearMedicineImageStorage)
_LOSSY = {  # those of JPEG 2000 may be lossless too, but then another syntax is for them
    JPEGBaseline8Bit: "ISO_10918_1", JPEGExtended12Bit: "ISO_10918_1", JPEGLSNearLossless: "ISO_14495_1",
    JPEG2000: "ISO_15444_1", JPEG2000MC: "ISO_15444_2", HTJ2K: "ISO_15444_15",
}  # fmt: skip
_WORD_BYTES = {"OW": 2, "OL": 4, "OF": 4, "OD": 8, "OV": 8}
_MARK = " [denoised]"


@dataclass(frozen=True)
class DerivedSeries:
    """What the instances of one output series share."""

    derivation: Derivation | None
    uid: str = field(default_factory=lambda: generate_uid(prefix=None))
    made: datetime = field(default_factory=lambda: datetime.now(UTC))
    concatenations: dict[str, str] = field(default_factory=dict)  # UIDs of the source's, and ours


def derive(source: Dataset, header: SliceHeader, series: DerivedSeries) -> Dataset:
    """Turn a parsed source data set, in place, into the derived one; pixels are to be set by `set_pixels`.

    Args:
        source: All elements before the pixels.
        header: Of its first plane.
        series: What the new series shares.
    """
    little = bool(source.file_meta.TransferSyntaxUID.is_little_endian)
    _drop(source, little)
    reference = _reference(source)
    _date(source, series.made)
    enhanced = "PerFrameFunctionalGroupsSequence" in source
    primary = enhanced or source.get("SOPClassUID") in _NEVER_SECONDARY
    source.ImageType = _derived_type(source.get("ImageType"), primary)
    if enhanced:
        _derive_frames(source, reference, series)
    else:
        _describe_derivation(source, [reference] if reference else [], series)
    source.SOPInstanceUID = generate_uid(prefix=None)
    source.SeriesInstanceUID = series.uid
    number = source.get("SeriesNumber")
    source.SeriesNumber = 1000 + (0 if number is None else int(number)) % 2**30
    _append(source, "SeriesDescription", _MARK, 64)
    source.ContributingEquipmentSequence = [*(source.get("ContributingEquipmentSequence") or []), _equipment(series)]
    if header.has_lut:
        _replace_lut(source, header)
    lossy = _LOSSY.get(source.file_meta.TransferSyntaxUID)
    if lossy and not source.get("LossyImageCompression"):
        source.LossyImageCompression, source.LossyImageCompressionMethod = "01", lossy
    _set_file_meta(source)
    return source


def set_pixels(dataset: Dataset, planes: Sequence[np.ndarray]) -> None:
    """Set the stored values, one (rows, columns) array a frame, uncompressed and little-endian."""
    stored = np.stack(planes)
    data = stored.astype(stored.dtype.newbyteorder("<")).tobytes()  # pydicom makes an odd number of bytes even
    dataset.add_new(Tag("PixelData"), "OB" if stored.dtype.itemsize == 1 else "OW", data)
    for keyword, value in (("SmallestImagePixelValue", stored.min()), ("LargestImagePixelValue", stored.max())):
        if keyword in dataset:
            del dataset[keyword]
            if stored.dtype.itemsize <= 2:
                dataset.add_new(Tag(keyword), "SS" if stored.dtype.kind == "i" else "US", int(value))


def _drop(dataset: Dataset, little: bool, private: bool = False) -> None:
    """Remove what does not hold for a derived image, at every depth, and turn big-endian words round.

    Args:
        dataset: All of an image, or an item of a sequence.
        little: Whether it was little-endian.
        private: Whether it is an item of a private sequence: public elements in it describe the source.
    """
    kept = kept_private(dataset)
    for tag in list(dataset.keys()):
        # Overlays that lay in the pixels' upper bits are gone with these.
        embedded = 0x6000 <= tag.group < 0x6020 and (tag.group, 0x3000) not in dataset
        foreign = tag not in kept if tag.is_private else private
        if foreign or embedded or keyword_for_tag(tag) in _DROPPED:
            del dataset[tag]
            continue
        raw = dataset.get_item(tag)
        vr = raw.VR if raw.VR not in (None, "UN") or not dictionary_has_tag(tag) else dictionary_VR(tag)
        if tag.is_private:
            vr = dataset[tag].VR  # pydicom knows those of all that are kept
        if vr == "SQ":
            for item in dataset[tag].value:
                _drop(item, little, private=tag.is_private)
        elif vr in CUSTOMIZABLE_CHARSET_VR and isinstance(raw, RawDataElement):
            # Text that is not in the character set it claims stays as it is, byte by byte.
            broken = "\ufffd" in str(dataset[tag].value)
            dataset[tag] = DataElement(tag, vr, raw.value) if broken else raw
        elif not little and vr in _WORD_BYTES and isinstance(dataset[tag].value, bytes):
            size, value = _WORD_BYTES[vr], dataset[tag].value
            if len(value) % size == 0:
                dataset[tag].value = np.frombuffer(value, f">u{size}").astype(f"<u{size}").tobytes()


def _reference(source: Dataset) -> Dataset | None:
    """The item of SourceImageSequence that names the source."""
    if not source.get("SOPInstanceUID") or not source.get("SOPClassUID"):
        return None
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    item.SpatialLocationsPreserved = "YES"
    item.PurposeOfReferenceCodeSequence = [_code("121322", "Source image for image processing operation")]
    return item


def _describe_derivation(target: Dataset, references: list[Dataset], series: DerivedSeries) -> None:
    """Append to what is said of earlier derivations; the source image is the direct one alone."""
    _append(target, "DerivationDescription", f"; {describe(series.derivation)}", 1024)
    codes = list(target.get("DerivationCodeSequence") or [])
    if not any(code.get("CodeValue") == "113087" for code in codes):
        codes.append(_code("113087", "Smoothing"))  # CID 7203 has no code for noise reduction
    target.DerivationCodeSequence = codes
    if "SourceImageSequence" in target:
        del target.SourceImageSequence
    if references:
        target.SourceImageSequence = references


def _append(target: Dataset, keyword: str, addition: str, limit: int) -> None:
    """Append to a text, or begin it, in as many characters as its VR holds."""
    before: Any = target.get(keyword) or ""
    if isinstance(before, MultiValue):  # a backslash in it
        before = (b"\\" if isinstance(before[0], bytes) else "\\").join(before)
    before = before.strip(b" \0") if isinstance(before, bytes) else str(before).strip()
    if before:  # bytes where it is not in the character set it claims
        before = before[: limit - len(addition)]
        value = before + (addition.encode() if isinstance(before, bytes) else addition)
    else:
        value = addition.strip(" ;[]")
    target[keyword] = DataElement(Tag(keyword), dictionary_VR(keyword), value)


def _derive_frames(source: Dataset, reference: Dataset | None, series: DerivedSeries) -> None:
    """What a single-frame image says of its derivation, an enhanced one says in each frame's functional groups."""
    shared = (source.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    before = list(shared.get("DerivationImageSequence") or [])
    if "DerivationImageSequence" in shared:
        del shared.DerivationImageSequence
    frames = source.PerFrameFunctionalGroupsSequence
    for number, groups in enumerate(frames, 1):
        references = []
        if reference is not None:
            references = [copy.deepcopy(reference)]
            references[0].ReferencedFrameNumber = number
        item = Dataset()
        _describe_derivation(item, references, series)
        groups.DerivationImageSequence = [
            *copy.deepcopy(before), *(groups.get("DerivationImageSequence") or []), item
        ]  # fmt: skip
    for groups in (shared, *frames):
        for keyword in _FRAME_TYPES:
            for item in groups.get(keyword) or []:
                item.FrameType = _derived_type(item.get("FrameType"), primary=True)
    if source.get("ConcatenationUID"):
        source.ConcatenationUID = series.concatenations.setdefault(source.ConcatenationUID, generate_uid(prefix=None))
    if reference is not None:
        _name_evidence(source, reference)


def _derived_type(given: Sequence[str] | str | None, primary: bool) -> list[str]:
    """ImageType or FrameType; PS3.3 knows no SECONDARY among enhanced (C.8.16.1), PET and NM images."""
    values = [given] if isinstance(given, str) else list(given or [])
    return ["DERIVED", "PRIMARY" if primary else "SECONDARY", *values[2:]]


def _name_evidence(source: Dataset, reference: Dataset) -> None:
    """What the frames refer to, enhanced images list by study and series too."""
    image, series, study = Dataset(), Dataset(), Dataset()
    image.ReferencedSOPClassUID = reference.ReferencedSOPClassUID
    image.ReferencedSOPInstanceUID = reference.ReferencedSOPInstanceUID
    series.ReferencedSOPSequence, series.SeriesInstanceUID = [image], source.SeriesInstanceUID
    study.ReferencedSeriesSequence, study.StudyInstanceUID = [series], source.StudyInstanceUID
    source.SourceImageEvidenceSequence = [*(source.get("SourceImageEvidenceSequence") or []), study]


def _date(dataset: Dataset, made: datetime) -> None:
    """Say when this was made, in the time zone that the header gives.

    Study, series and acquisition keep their times: PET and NM images count times, and decay, from SeriesTime.
    """
    given = str(dataset.get("TimezoneOffsetFromUTC") or "").strip()
    if re.fullmatch(r"[+-]\d{4}", given):
        offset = timedelta(hours=int(given[1:3]), minutes=int(given[3:]))
        local = made.astimezone(timezone(-offset if given[0] == "-" else offset))
    else:
        local = made.astimezone()
    for name in ("InstanceCreation", "Content"):
        dataset[f"{name}Date"] = DataElement(Tag(f"{name}Date"), "DA", local.strftime("%Y%m%d"))
        dataset[f"{name}Time"] = DataElement(Tag(f"{name}Time"), "TM", local.strftime("%H%M%S.%f"))


def _equipment(series: DerivedSeries) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [_code("109102", "Processing Equipment")]
    item.Manufacturer = TOOL
    item.ManufacturerModelName = series.derivation.model[:64] if series.derivation else TOOL
    item.SoftwareVersions = __version__
    item.ContributionDateTime = series.made.strftime("%Y%m%d%H%M%S.%f+0000")
    item.ContributionDescription = "Denoising"
    return item


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _replace_lut(dataset: Dataset, header: SliceHeader) -> None:
    """The pixels now hold what the Modality LUT gave; padding is among what it maps, and no longer one value."""
    dataset.RescaleType = dataset.ModalityLUTSequence[0].get("ModalityLUTType") or "US"
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = header.dtype.itemsize * 8, header.bits, header.bits - 1
    dataset.PixelRepresentation = 0
    for keyword in ("ModalityLUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit"):
        if keyword in dataset:
            del dataset[keyword]


def _set_file_meta(dataset: Dataset) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    meta.ImplementationVersionName = f"{TOOL}_{__version__}"[:16].upper()
    dataset.file_meta = meta
