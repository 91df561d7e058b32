"""How much memory a scan takes that is denoised in memory, judged before it is read."""

from __future__ import annotations

import math

import numpy as np

from adl_monai.data.formats import scan_format
from adl_monai.data.nifti.file import peek_header
from adl_monai.files import size_of
from adl_monai.inferers.ensemble import check_ensemble
from adl_monai.memory import memory_budget
from adl_monai.stages.outputs import Job

_PER_STORED_BYTE = 13  # as for an int16 volume; compressed files are taken for smaller than they are
_PER_VOXEL_OF_ENSEMBLE = {1: 0, 2: 8, 4: 16, 8: 16}  # a mirror image, what came of it, the sum, and gaps between them


def memory_needed(shape: tuple[int, ...], dtype: np.dtype, ensemble: int = 1) -> int:
    """Bytes that denoising in memory takes at its peak, beside the network.

    Measured: 25 for each voxel of an int16 volume, 28 for float32 (five float32 copies and twice the stored voxels).
    A copy without blank regions adds 4, an ensemble of two 7, of four or eight 15.
    """
    return math.prod(shape) * (24 + 2 * dtype.itemsize + _PER_VOXEL_OF_ENSEMBLE[check_ensemble(ensemble)])


def fits(job: Job, max_memory: int | None = None, scans: int = 1, ensemble: int = 1) -> bool:
    """Whether there is room to denoise a scan in memory: NIfTI's header says, other files are judged by their size.

    Args:
        job: The job.
        max_memory: See `adl_monai.memory.memory_budget`; half of it is for volumes.
        scans: How many are in memory at the same time.
        ensemble: How many mirror images are averaged.

    Raises:
        AdlError: If the source is not a sound NIfTI file, as far as its header tells.
    """
    if scan_format(job.source) == "nifti":
        header = peek_header(job.source)
        needed = memory_needed(header.shape, header.dtype, ensemble)
    else:
        needed = size_of(job.source) * _PER_STORED_BYTE
    return needed <= memory_budget(max_memory) / 2 / scans
