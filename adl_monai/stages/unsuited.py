"""Images that are no scans, or too coarse for what is asked: label maps, phase images, few counts, a wrong unit."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from adl_monai.data.formats import scan_format
from adl_monai.data.geometry import spacing_from_affine
from adl_monai.data.nifti.file import peek_header
from adl_monai.errors import ScanFileError

logger = logging.getLogger(__name__)

_LABEL_INTENT = 1002  # NIFTI_INTENT_LABEL
AGREEING = 0.7
"""Share of neighbours of the same whole number above which an image counts as labels. In label maps it is 0.8 to 0.98;
noise leaves less than a third, enlarging by two without interpolation a half."""

_EDGE = 128  # voxels, of the part of an image that is looked at

FEW_NUMBERS = 32
"""Different whole numbers below which rounding costs: what is left of the noise is about as small as their steps."""

USUAL_MM = (0.02, 20.0)
"""Voxel edges that images of patients have, from micro-CT to thick slices; others are most likely a wrong unit."""


def refuse_label_map(path: Path) -> None:
    """Refuse a NIfTI file that says it holds labels.

    Raises:
        ScanFileError: Denoising would mix the labels.
    """
    if scan_format(path) == "nifti" and int(peek_header(path, time_series=True).fields["intent_code"]) == _LABEL_INTENT:
        raise ScanFileError(
            f"{path}: header field intent_code is {_LABEL_INTENT}, a label map; expected an image. Denoising would mix "
            "its labels: leave it out, or correct the header."
        )


def warn_of_content(path: Path, values: np.ndarray, rounded: bool) -> None:
    """Log what an image most likely is, if that is nothing to denoise.

    Args:
        path: Named in the warning.
        values: (H, W) or (H, W, D), slope and intercept applied; of a large image its middle is looked at.
        rounded: Whether the result will be stored as integers.
    """
    values = values[tuple(slice(max(0, n - _EDGE) // 2, max(0, n - _EDGE) // 2 + _EDGE) for n in values.shape)]
    whole = bool(np.array_equal(values, np.rint(values)))
    if whole and (share := _agreeing_neighbours(values)) > AGREEING:
        logger.warning(
            "%s: %.0f %% of neighbouring voxels have the same whole number, as in a label map, a mask or an image "
            "without noise. Labels must not be denoised: that mixes them.",
            path,
            100 * share,
        )
    elif rounded and (count := len(np.unique(values))) < FEW_NUMBERS:
        logger.warning(
            "%s: it holds %d different numbers; rounded to such steps, a result may be shifted. Keep fractions with "
            "--dtype float32.",
            path,
            count,
        )
    low, high = float(values.min()), float(values.max())
    if not whole and -3.15 < low < -3.1 and 3.1 < high < 3.15:
        logger.warning(
            "%s: its values run from -pi to pi, as in a phase image: where they wrap, denoising blurs them. Denoise "
            "the real and the imaginary part instead.",
            path,
        )


def warn_of_spacing(source: Path, affine: np.ndarray, axes: int = 3) -> None:
    """Log a voxel size that no image of a patient has; ``affine`` is (4, 4), voxel to mm."""
    spacing = spacing_from_affine(affine)[:axes]
    if min(spacing) < USUAL_MM[0] or max(spacing) > USUAL_MM[1]:
        logger.warning(
            "%s: voxels of %s mm; expected %g to %g mm. Check the spacing and units in its header; they are kept.",
            source,
            " x ".join(f"{edge:g}" for edge in spacing),
            *USUAL_MM,
        )


def _agreeing_neighbours(values: np.ndarray) -> float:
    """How often a voxel of the object, which is all but the commonest number, has the number of the next one."""
    numbers, counts = np.unique(values, return_counts=True)
    commonest = numbers[counts.argmax()]
    pairs = equal = 0
    for axis in range(values.ndim):
        along = np.moveaxis(values, axis, 0)
        first, second = along[:-1], along[1:]
        of_object = first != commonest
        pairs += int(np.count_nonzero(of_object))
        equal += int(np.count_nonzero((first == second) & of_object))
    return equal / pairs if pairs else 0.0
