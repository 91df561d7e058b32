"""Tiny scans with every field under the test's control."""

from __future__ import annotations

import copy
import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

SHAPE = (37, 61, 23)


def oblique_affine() -> np.ndarray:
    """Rotated about two axes, anisotropic, with its second axis flipped; exact in float32."""
    turn = np.array([[0.75, -0.625, 0.25], [0.625, 0.75, -0.125], [-0.125, 0.25, 0.9375]])
    affine = np.eye(4)
    affine[:3, :3] = turn * [0.5, -1.25, 3.0]
    affine[:3, 3] = [-100.5, 42.25, 7.125]
    return affine


@pytest.fixture
def oblique() -> np.ndarray:
    return oblique_affine()


def build_nifti(
    path: Path,
    stored: np.ndarray,
    affine: np.ndarray | None = None,
    codes: tuple[int, int] = (1, 0),
    scale: tuple[float, float] = (1.0, 0.0),
    order: str = "<",
    version: int = 1,
    units: int = 2 + 8,
    extension: bytes = b"",
    fields: dict[str, Any] | None = None,
) -> Path:
    """Write a NIfTI file by hand: nibabel's header structure, our bytes. ``codes`` are sform's and qform's."""
    header = (Nifti1Header if version == 1 else Nifti2Header)(endianness=order)
    header.set_data_shape(stored.shape)
    header.set_data_dtype(stored.dtype)
    affine = np.eye(4) if affine is None else affine
    header.set_qform(affine, 1, strip_shears=True)
    header.set_sform(affine, 1)
    header["sform_code"], header["qform_code"] = codes
    header["scl_slope"], header["scl_inter"] = scale
    header["xyzt_units"] = units
    header["descrip"] = b"a note"
    header["magic"] = header.single_magic
    if extension:
        extension = b"\1\0\0\0" + (len(extension) + 8).to_bytes(4, "little") + b"\6\0\0\0" + extension
    extension = extension or b"\0\0\0\0"
    header["vox_offset"] = header.sizeof_hdr + len(extension)
    for name, value in (fields or {}).items():
        if name == "dim":
            value = list(value) + [1] * (8 - len(value))
        header[name] = value
    data = header.binaryblock + extension + stored.astype(stored.dtype.newbyteorder(order)).tobytes(order="F")
    path.write_bytes(gzip.compress(data, mtime=0) if path.name.lower().endswith(".gz") else data)
    return path


@pytest.fixture
def nifti(tmp_path: Path) -> Callable[..., Path]:
    """``nifti(stored, name="scan.nii", **options of build_nifti)`` gives the path."""

    def build(stored: np.ndarray, name: str = "scan.nii", **options: Any) -> Path:
        return build_nifti(tmp_path / name, stored, **options)

    return build


def build_dicom(path: Path, stored: np.ndarray, **elements: Any) -> Path:
    """Write one CT slice; ``elements`` override or, when None, remove DICOM elements by keyword."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    bits = stored.dtype.itemsize * 8
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": "1.2.3.4",
        "FrameOfReferenceUID": "1.2.3.5",
        "SeriesNumber": 7,
        "Modality": "CT",
        "PatientID": "SECRET-ID",
        "PatientName": "SECRET^NAME",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "ImagePositionPatient": [-10.0, 20.0, 30.0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.75, 0.5],
        "SliceThickness": 2.5,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": stored.tobytes(),
    }
    for keyword, value in {**values, **elements}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset["PixelData"].VR = "OW"
    dataset.save_as(path, enforce_file_format=True)
    return path


def build_series(folder: Path, heights: Sequence[float], seed: int = 0, **elements: Any) -> list[Path]:
    """Write CT slices of 6 rows and 5 columns at these z positions (mm), with distinct voxels."""
    rng = np.random.default_rng(seed)
    return [
        build_dicom(
            folder / f"{index:03d}.dcm",
            rng.integers(0, 3000, (6, 5)).astype(np.int16),
            **{"ImagePositionPatient": [-10.0, 20.0, height], "InstanceNumber": index + 1, **elements},
        )
        for index, height in enumerate(heights)
    ]


def build_enhanced(path: Path, planes: Sequence[np.ndarray], heights: Sequence[float], **elements: Any) -> Path:
    """Write an enhanced CT image: real header of two frames, our pixels; each frame at a height (mm), in this order.

    ``slopes`` gives each frame a RescaleSlope of its own; other ``elements`` override those of the data set.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    source = get_testdata_file("eCT_Supplemental.dcm")
    assert source is not None
    dataset = pydicom.dcmread(source)
    first = dataset.PerFrameFunctionalGroupsSequence[0]
    slopes = elements.pop("slopes", None)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    transformation = copy.deepcopy(shared.PixelValueTransformationSequence)
    transformation[0].RescaleType = "HU"
    for rows in ("Red", "Green", "Blue"):
        delattr(dataset, f"{rows}PaletteColorLookupTableDescriptor")
        delattr(dataset, f"{rows}PaletteColorLookupTableData")
    dataset.PixelPresentation = shared.CTImageFrameTypeSequence[0].PixelPresentation = "MONOCHROME"
    if slopes is not None:
        del shared.PixelValueTransformationSequence
    else:
        shared.PixelValueTransformationSequence = transformation
    frames = []
    for index, height in enumerate(heights):
        frame = copy.deepcopy(first)
        frame.PlanePositionSequence[0].ImagePositionPatient = [-10, 20, height]
        content = frame.FrameContentSequence[0]
        content.InStackPositionNumber, content.DimensionIndexValues = index + 1, [1, index + 1]
        if slopes is not None:
            frame.PixelValueTransformationSequence = copy.deepcopy(transformation)
            frame.PixelValueTransformationSequence[0].RescaleSlope = slopes[index]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.NumberOfFrames = len(frames)
    dataset.Rows, dataset.Columns = planes[0].shape
    dataset.PixelData = np.stack(planes).astype("<u2").tobytes()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path
