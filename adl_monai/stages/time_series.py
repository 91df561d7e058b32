"""Time series and diffusion scans: NIfTI files of four axes, whose volumes are denoised one by one.

What the volumes have in common is not used: the network sees one at a time, in the intensity range of that one. Not
more than one is in memory.
"""

from __future__ import annotations

import logging
from copy import copy
from dataclasses import replace

import numpy as np
import torch

from adl_monai.bars import bar
from adl_monai.bundle import Denoiser
from adl_monai.data.formats import output_format, scan_format
from adl_monai.data.nifti.file import peek_header
from adl_monai.data.nifti.sink import nifti_sink
from adl_monai.data.nifti.stream import open_nifti_source
from adl_monai.data.noise_floor import warn_of_fall
from adl_monai.data.normalization import normalize, robust_range
from adl_monai.data.output import check_output
from adl_monai.errors import OutputError
from adl_monai.stages.arrays import denoise
from adl_monai.stages.outputs import Job
from adl_monai.stages.preview import draw_preview, write_preview
from adl_monai.stages.unsuited import warn_of_content, warn_of_spacing

logger = logging.getLogger(__name__)


def is_time_series(job: Job) -> bool:
    """Whether a job's source is a NIfTI file of several volumes.

    Raises:
        AdlError: If it is not a sound NIfTI file, as far as its header tells.
    """
    return scan_format(job.source) == "nifti" and len(peek_header(job.source, time_series=True).shape) == 4


def denoise_time_series(
    job: Job,
    denoiser: Denoiser,
    *,
    strength: float = 1.0,
    noise_floor: str = "auto",
    dtype: str = "same",
    preview: bool = False,
) -> int:
    """Denoise each volume of a NIfTI file of four axes into a file like it.

    Args:
        job: Source and output.
        denoiser: For one volume.
        strength: As in ``adl_monai.stages.infer.infer``, like the other options.
        noise_floor: For each volume; ``auto`` warns once.
        dtype: ``same`` or ``float32``.
        preview: Also write a picture of the middle volume.

    Returns:
        The number of voxels that did not fit the output's integer type and were saturated.

    Raises:
        AdlError: If the file cannot be read or the output written; nothing is left behind then.
    """
    if output_format(job.output) != "nifti":
        raise OutputError(f"{job.output}: a time series is written as NIfTI alone; name a .nii.gz file (-o).")
    check_output(job.output, job.source, job.overwrite)  # before the file is read through, which may take minutes
    rows, columns, planes, count = peek_header(job.source, time_series=True).shape
    progress, denoiser = denoiser.inferer.progress, _without_progress(denoiser)
    constant = 0
    floor = "remove" if noise_floor == "auto" else noise_floor  # one warning, below
    means = []
    with open_nifti_source(job.source, job.output, time_series=True) as source:
        warn_of_spacing(job.source, source.header.affine)
        sinking = nifti_sink(job.output, job.source, source.header, dtype, job.overwrite)
        with sinking as sink, bar(count, "volume", progress) as advance:
            for index in range(count):
                box = slice(0, rows), slice(0, columns), slice(index * planes, (index + 1) * planes)
                noisy = source.read(box)
                if index == 0:
                    warn_of_content(job.source, noisy, dtype == "same" and source.header.dtype.kind in "iu")
                if noisy.min() == noisy.max():
                    constant += 1
                    denoised = noisy
                else:
                    denoised = denoise(noisy, denoiser, strength=strength, noise_floor=floor)
                sink.write(box, denoised)
                means.append((noisy.mean(dtype=float), denoised.mean(dtype=float), noisy.min()))
                if preview and index == count // 2:
                    picture = _picture(noisy, denoised, denoiser, source.header.affine)
                advance(1)
        if preview:
            write_preview(job.preview, picture)
    if constant:
        logger.warning("%s: %d of %d volumes are constant and are written unchanged", job.source, constant, count)
    if noise_floor == "auto":
        warn_of_fall(job.source, *np.mean(means, axis=0))
    return sink.clipped


def _without_progress(denoiser: Denoiser) -> Denoiser:
    """The same denoiser without its bar: there is one over the volumes."""
    inferer = copy(denoiser.inferer)
    inferer.progress = False
    return replace(denoiser, inferer=inferer)


def _picture(noisy: np.ndarray, denoised: np.ndarray, denoiser: Denoiser, affine: np.ndarray) -> np.ndarray:
    offset, scale = robust_range(noisy, *denoiser.percentiles)
    noisy_plane, denoised_plane = (
        normalize(torch.from_numpy(array)[None], offset, scale or 1.0) for array in (noisy, denoised)
    )
    return draw_preview(noisy_plane, denoised_plane, affine)
