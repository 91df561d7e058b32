"""The DICOM door for writing: a derived series, one instance for each of the source's, with its geometry and scale.

Nothing is computed anew but the pixels: places, spacings, slopes, windows and the patient's data are the source's. The
files are numbered (``IM_0001.dcm``): no UID and nothing of the patient is in their names.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom

from adl_monai.data.derivation import Derivation
from adl_monai.data.dicom.derive import DerivedSeries, derive, set_pixels
from adl_monai.data.dicom.header import SliceHeader
from adl_monai.data.dicom.parse import discreet, parse
from adl_monai.data.dicom.pixels import PixelReader
from adl_monai.data.dicom.read import Stack, locate, read_stack
from adl_monai.data.volume import WritePlan, require_shape
from adl_monai.data.voxels import keeps_type, quantise, to_float32
from adl_monai.errors import OutputError, ScanFileError

Instance = list[tuple[SliceHeader, int]]
"""The planes of one source file, each with the index of its place."""


def plan_dicom(
    path: Path,
    array: np.ndarray,
    like: Path,
    dtype: str | np.dtype,
    series: str | None,
    derivation: Derivation | None,
) -> WritePlan:
    """Plan a derived series.

    Args:
        path: A folder to make; or a ``.dcm`` file, for a source of one file.
        array: Values, of the shape `read_dicom` gave for ``like``. Where the source is padding, its values are kept.
        like: The source, a file or a folder.
        dtype: ``same``: stored values keep their type and bits, slope and intercept their values.
        series: As in `read_dicom`.
        derivation: What made the values; named in the headers.

    Raises:
        OutputError: If the array does not fit, another type is asked for, or one file is to hold several.
    """
    if not keeps_type(dtype):
        raise OutputError(f"{path}: DICOM keeps the source's integers, not {dtype}; write .nii.gz for another type.")
    stack = locate(like, series)
    require_shape(array, stack.shape, like)
    instances = _instances(stack)
    if path.suffix.lower() == ".dcm" and len(instances) > 1:
        raise OutputError(f"{path}: {len(instances)} images do not fit one file; name a folder, or a .nii.gz file.")
    planes, clipped = _stored_planes(stack, array)
    expected = np.empty(array.shape, np.float32)
    for index, (place, plane) in enumerate(zip(stack.places, planes, strict=True)):
        values = to_float32(plane, place[0].path, place[0].slope, place[0].intercept)
        expected.reshape((*array.shape[:2], -1))[..., index] = values
    stored_type = np.result_type(*{plane.dtype for plane in planes})
    shared = DerivedSeries(derivation)

    def save(target: Path) -> None:
        if path.suffix.lower() == ".dcm":
            _save_instance(target, instances[0], planes, shared)
            return
        target.mkdir()
        digits = max(4, len(str(len(instances))))
        for number, instance in enumerate(instances, 1):
            _save_instance(target / f"IM_{number:0{digits}d}.dcm", instance, planes, shared)

    return WritePlan(
        expected,
        stack.affine,
        stored_type,
        clipped,
        save,
        lambda target: read_stack(locate(target), target),
        min(place[0].bits for place in stack.places),
    )


def _instances(stack: Stack) -> list[Instance]:
    """The source's files in the order of places; of single-frame copies at one place, the first."""
    files: dict[Path, Instance] = {}
    for index, place in enumerate(stack.places):
        for header in place[:1] if place[0].frames == 1 else place:
            files.setdefault(header.path, []).append((header, index))
    instances = [sorted(instance, key=lambda plane: plane[0].frame) for instance in files.values()]
    for instance in instances:
        if len(instance) != instance[0][0].frames:
            raise OutputError(f"{instance[0][0].path}: only some frames belong to the volume; write .nii.gz instead.")
    return instances


def _stored_planes(stack: Stack, array: np.ndarray) -> tuple[list[np.ndarray], int]:
    """Stored (columns, rows) values of each place, the source's where it is padding, and how many were saturated."""
    planes, clipped, pixels = [], 0, PixelReader()
    for place, values in zip(stack.places, np.moveaxis(array.reshape((*array.shape[:2], -1)), -1, 0), strict=True):
        header = place[0]
        source, padded = (None, None) if header.padding is None else pixels.read(header)
        if padded is not None:
            # In its place, something that surely fits: padding is no part of what can be saturated.
            values = np.where(padded, header.intercept, values)
        stored, saturated = quantise(values, header.dtype, header.slope, header.intercept, header.bits)
        planes.append(stored if source is None or padded is None else np.where(padded, source, stored))
        clipped += saturated
    return planes, clipped


def _save_instance(target: Path, instance: Instance, planes: list[np.ndarray], series: DerivedSeries) -> None:
    source = instance[0][0].path
    try:
        with discreet(), pydicom.config.disable_value_validation():
            dataset = parse(source, pixels=False)
            assert dataset is not None
            derived = derive(dataset, instance[0][0], series)
            set_pixels(derived, [planes[index].T for _, index in instance])
            with target.open("wb") as file:
                pydicom.dcmwrite(file, derived, implicit_vr=False, little_endian=True, enforce_file_format=True)
                file.flush()
                os.fsync(file.fileno())
    except (OSError, MemoryError, ScanFileError):
        raise
    except Exception as error:  # pydicom's texts may quote the patient
        raise OutputError(
            f"{source}: its header cannot be written anew ({type(error).__name__}); write .nii.gz instead."
        ) from None
