"""A scan in memory, and a file that is about to be written."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from adl_monai.data.geometry import affine_fault, lps_to_ras, same_affine, spacing_from_affine
from adl_monai.data.missing_voxels import filled_from_beside
from adl_monai.data.voxels import integer_bounds, to_float32
from adl_monai.errors import OutputError

logger = logging.getLogger("adl_monai")


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan: its values, where they lie in the patient, and how the file stored them.

    Attributes:
        array: float32 values (slope and intercept applied) in stored index order: (columns, rows[, slices]) for every
            format, without a channel axis, C-contiguous.
        affine: (4, 4) float64, voxel index to RAS+ millimetres; for 2D images too.
        dtype: The type of the voxels on disk; with its byte order for NIfTI, else native.
        format: ``nifti``, ``dicom``, ``mha``, ``nrrd``, ``png``, ``tiff``, ``jpeg``, ``bmp`` or ``synthetic``.
        path: The file or, for a DICOM series, the folder.
        padding: Where the source says "no image here" (DICOM's PixelPaddingValue; voxels of NIfTI that are NaN or
            infinite and kept), of the array's shape; None if nowhere. These voxels mean nothing: a model must not see
            them, and an output gives them back.
        modality: DICOM's ``CT``, ``MR``, ``PT``, ...; empty where the file names none, as in every other format.
    """

    array: np.ndarray
    affine: np.ndarray
    dtype: np.dtype
    format: str
    path: Path
    padding: np.ndarray | None = None
    modality: str = ""

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in mm, one number per axis of ``array``."""
        return spacing_from_affine(self.affine)[: self.array.ndim]

    def without_padding(self) -> np.ndarray:
        """The array as a model may see it.

        Padding is replaced by the smallest value of the image proper; where it is no number, by what lies beside it.
        """
        if self.padding is None or self.padding.all():
            return self.array
        if self._keeps_missing:
            return filled_from_beside(self.array, self.padding)
        return np.where(self.padding, self.array[~self.padding].min(), self.array)

    @property
    def _keeps_missing(self) -> bool:
        return self.padding is not None and not np.isfinite(self.array[self.padding]).all()

    def with_padding_of(self, source: Volume) -> Volume:
        """This volume with the padding of another of the same shape put back."""
        if source.padding is None:
            return self
        return replace(self, array=np.where(source.padding, source.array, self.array), padding=source.padding)

    def save(
        self,
        path: Path | str,
        *,
        dtype: str | np.dtype = "same",
        series: str | None = None,
        overwrite: bool = False,
    ) -> int:
        """Write ``array`` as a denoised copy of the source at ``self.path``: see ``adl_monai.data.io.write_volume``.

        Args:
            path: The file, or the folder of a DICOM series.
            dtype: ``same`` as the source, or a type such as ``float32``.
            series: As in ``read_volume``, where the source is a folder of several DICOM series.
            overwrite: Replace an existing output.

        Returns:
            The number of voxels that did not fit the type and were saturated.

        Raises:
            OutputError: If the output exists or cannot be written; nothing is left behind.
        """
        from adl_monai.data.io import write_volume  # which imports this module

        like = None if self.format == "synthetic" else self.path
        return write_volume(
            path,
            self.array,
            like=like,
            affine=self.affine,
            dtype=dtype,
            series=series,
            overwrite=overwrite,
            nan_policy="keep" if self._keeps_missing else "refuse",
        )


@dataclass(frozen=True, eq=False)
class WritePlan:
    """A file about to be written and what a reader must find in it afterwards.

    Attributes:
        array: float32 values as they will be read back (after rounding and saturation).
        affine: (4, 4) voxel to RAS mm as it will be read back, or None where the format cannot hold it.
        dtype: The type of the stored voxels.
        clipped: Number of voxels that did not fit that type and were saturated.
        save: Writes the file to a path; raises OSError or OutputError.
        load: Reads such a file back without logging warnings.
        bits: How many bits of an integer ``dtype`` are used; None for all.
    """

    array: np.ndarray
    affine: np.ndarray | None
    dtype: np.dtype
    clipped: int
    save: Callable[[Path], None]
    load: Callable[[Path], Volume]
    bits: int | None = None


def require_shape(array: np.ndarray, shape: tuple[int, ...], like: Path) -> None:
    """Refuse an array that cannot be written like the scan ``like``, whose shape this is.

    Raises:
        OutputError: Naming both shapes.
    """
    if array.shape != shape:
        raise OutputError(f"an array of shape {array.shape} does not fit {like}, whose shape is {shape}.")


def require_affine(affine: np.ndarray) -> None:
    """Refuse an affine that no file can hold.

    Raises:
        OutputError: If it is not finite, or singular.
    """
    if fault := affine_fault(affine):
        raise OutputError(f"the affine to write is {fault}; expected a finite, invertible voxel-to-mm matrix.")


def plan_values(
    write: Callable[[Path], None],
    kind: str,
    stored: np.ndarray,
    clipped: int,
    affine: np.ndarray | None,
    load: Callable[[Path], Volume],
) -> WritePlan:
    """A `WritePlan` of stored voxels without a scale; ``write`` may raise whatever its library does."""

    def save(path: Path) -> None:
        try:
            write(path)
        except (RuntimeError, OSError) as error:
            raise OutputError(f"{path}: {kind} could not be written (disk full, or not permitted).") from error

    return WritePlan(to_float32(stored, Path("the output")), affine, stored.dtype, clipped, save, load)


def bare_spacing(affine: np.ndarray, path: Path) -> tuple[float, float, float]:
    """The voxel size in mm of an affine to be written to a format that keeps no more, with a warning if there is more.

    Raises:
        OutputError: If the affine is unusable.
    """
    require_affine(affine)
    spacing = spacing_from_affine(affine)
    if not same_affine(affine, lps_to_ras(np.diag([*spacing, 1.0]))):
        logger.warning("%s: %s files keep no position or orientation; write .nii.gz to keep them.", path, path.suffix)
    return spacing


def plain_dtype(volume: Volume) -> np.dtype:
    """The type that holds this volume's *values* (no slope) in another format.

    Integers stay integers where all values are whole: the stored type if it holds them, else int16, uint16 or int32.
    Anything else becomes a real type: the stored one, or float32 (for half precision too, which few formats have).
    """
    native = volume.dtype.newbyteorder("=")
    if native.kind == "f":
        return native if native.itemsize > 2 else np.dtype(np.float32)
    low, high = float(volume.array.min()), float(volume.array.max())
    if np.array_equal(volume.array, np.rint(volume.array)):
        for dtype in (native, np.dtype(np.int16), np.dtype(np.uint16), np.dtype(np.int32)):
            smallest, largest = integer_bounds(dtype)
            if smallest <= low and high <= largest:
                return dtype
    return np.dtype(np.float32)
