"""One scan, from its file to its denoised copy: the parts of a bundle's ``inference.json``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from adl_monai.bundle import Denoiser, load_denoiser
from adl_monai.data.formats import scan_format
from adl_monai.data.geometry import spacing_from_affine
from adl_monai.data.missing_voxels import keeps_missing
from adl_monai.data.monai_io import StrictLoadImaged
from adl_monai.data.nifti.file import peek_header, reread_nifti
from adl_monai.errors import AdlError, ModelError, OutOfMemoryError, is_out_of_memory, surfacing_user_errors
from adl_monai.stages.outputs import Job, check_again
from adl_monai.stages.pipeline import AT_ONCE, Steps
from adl_monai.stages.preview import draw_preview, write_preview
from adl_monai.stages.sizes import fits
from adl_monai.stages.slices import fitting_axes
from adl_monai.stages.stream import can_stream, denoise_stream
from adl_monai.stages.tally import InferenceResult
from adl_monai.stages.time_series import denoise_time_series, is_time_series
from adl_monai.stages.unsuited import refuse_label_map, warn_of_content, warn_of_spacing

logger = logging.getLogger(__name__)


class DenoiserChoice:
    """The model that was asked for, or else the shipped one for each kind of image; each is loaded once.

    Args:
        model: See ``adl_monai.bundle.find_bundle``.
        **options: See ``adl_monai.bundle.load_denoiser``.
    """

    def __init__(self, model: str | Path | None, **options: Any) -> None:
        self.model = model
        self.options = options
        self.nan_policy: str = options.get("nan_policy", "refuse")
        self._loaded: dict[int, Denoiser] = {}

    def get(self, spatial_dims: int = 3) -> Denoiser:
        """The denoiser for an image of so many axes.

        Raises:
            ModelError: If there is none: a given 3D model does not take 2D images.
        """
        key = 3 if self.model is not None else spatial_dims
        if key not in self._loaded:
            self._loaded[key] = load_denoiser(self.model, spatial_dims=key, **self.options)
        denoiser = self._loaded[key]
        if denoiser.spatial_dims == 3 and spatial_dims == 2:
            raise ModelError(
                f"the image is 2D, but model {denoiser.name!r} is 3D; pass a 2D model with --model, or none."
            )
        return denoiser

    def fitting(self, shape: Sequence[int], affine: np.ndarray) -> Denoiser:
        """The denoiser for an image of this shape (without channels) and geometry, (4, 4).

        Raises:
            ModelError: As ``get`` does.
        """
        if self.model is not None:
            return self.get(len(shape))
        return self.get(fitting_axes(shape, spacing_from_affine(affine)))

    def fits(self, job: Job, scans: int = 1) -> bool:
        """Whether so many scans like this one can be denoised in memory with these options, see `fits`."""
        return fits(job, self.options.get("max_memory"), scans, self.options.get("ensemble", 2))


def denoise_job(
    denoisers: DenoiserChoice, job: Job, preview: bool = False, time_series: bool = False
) -> InferenceResult:
    """Denoise one scan, or with ``time_series`` each volume of one, and write the result.

    Raises:
        AdlError: If the scan cannot be read, denoised or written.
    """
    with _explaining(job):
        refuse_label_map(job.source)
        if time_series and is_time_series(job):
            return _denoise_time_series(denoisers, job, preview)
        return _denoise_job(denoisers, job, preview)


@dataclass
class _Case:
    """A scan on its way."""

    job: Job
    denoiser: Denoiser
    content: dict[Any, Any]
    """What MONAI's transforms pass on: ``image``, then ``pred`` too."""


def steps_of(
    denoisers: DenoiserChoice, preview: bool, time_series: bool, resume: bool
) -> Steps[Job, _Case, InferenceResult]:
    """What ``run_steps`` does with each scan."""

    def read(job: Job) -> _Case:
        check_again(job, preview, resume)
        with _explaining(job):
            refuse_label_map(job.source)
            return _read(denoisers, job)

    def compute(case: _Case) -> _Case:
        with _explaining(case.job):
            return _compute(case)

    def write(case: _Case) -> InferenceResult:
        with _explaining(case.job):
            return _write(case, preview, denoisers.nan_policy)

    def crowds(job: Job) -> bool:
        try:
            return (time_series and is_time_series(job)) or not denoisers.fits(job, AT_ONCE)
        except (AdlError, OSError):  # a bad file: reading it will say so, where the failure of a scan is expected
            return False

    def whole(job: Job) -> InferenceResult:
        check_again(job, preview, resume)
        return denoise_job(denoisers, job, preview, time_series)

    return Steps(read, compute, write, whole, crowds)


def _streaming(denoisers: DenoiserChoice, job: Job) -> Denoiser | None:
    """What denoises a scan from disk to disk, if that can be and the scan alone is too large for the memory."""
    if not can_stream(job):
        return None
    header = peek_header(job.source)
    denoiser = denoisers.fitting(header.shape, header.affine)
    if not denoiser.inferer.can_stream(denoiser.network) or denoisers.fits(job):
        return None
    return denoiser


def _denoise_job(denoisers: DenoiserChoice, job: Job, preview: bool) -> InferenceResult:
    if (denoiser := _streaming(denoisers, job)) is not None:
        clipped = denoise_stream(job, denoiser, preview=preview, **_of_the_output(denoisers))
        return InferenceResult(job.source, job.output, clipped, denoiser.spatial_dims == 2)
    return _write(_compute(_read(denoisers, job)), preview, denoisers.nan_policy)


def _denoise_time_series(denoisers: DenoiserChoice, job: Job, preview: bool) -> InferenceResult:
    header = peek_header(job.source, time_series=True)
    denoiser = denoisers.fitting(header.shape[:3], header.affine)
    clipped = denoise_time_series(job, denoiser, preview=preview, **_of_the_output(denoisers))
    return InferenceResult(job.source, job.output, clipped, denoiser.spatial_dims == 2 and header.shape[2] > 1)


def _of_the_output(denoisers: DenoiserChoice) -> dict[str, Any]:
    """The options that what writes by itself has to know."""
    names = {"strength": "strength", "noise_floor": "noise_floor", "output_dtype": "dtype"}
    return {name: denoisers.options[key] for key, name in names.items() if key in denoisers.options}


def _read(denoisers: DenoiserChoice, job: Job) -> _Case:
    # The first transform of every bundle loads, alike; what it finds tells which model is for it.
    item = {"image": str(job.source), "output": str(job.output), "overwrite": job.overwrite}
    if job.series is None:
        loaded = denoisers.get().preprocessing(item, end=1)
    else:
        loaded = StrictLoadImaged("image", job.series)(item)
    image: MetaTensor = loaded["image"]
    denoiser = denoisers.fitting(image.shape, image.affine.numpy())
    rounded = denoisers.options.get("output_dtype", "same") == "same"
    warn_of_content(job.source, image.numpy(), rounded and np.dtype(image.meta["stored_dtype"]).kind in "iu")
    case = denoiser.preprocessing(loaded, start=1)
    noisy = case["image"]
    warn_of_spacing(job.source, noisy.affine.numpy(), noisy.ndim - 1)
    return _Case(job, denoiser, case)


def _compute(case: _Case) -> _Case:
    noisy = case.content["image"]
    if noisy.meta.get("constant_image"):
        logger.warning("%s is constant and is written unchanged", case.job.source)
        case.content["pred"] = noisy.clone()
    else:
        with torch.inference_mode():
            case.content["pred"] = case.denoiser.inferer(noisy[None], case.denoiser.network)[0]
    return case


def _write(case: _Case, preview: bool, nan_policy: str = "refuse") -> InferenceResult:
    noisy = case.content["image"]
    picture = _picture(case, nan_policy) if preview else None
    written = case.denoiser.postprocessing(case.content)
    if picture is not None:  # of a scan that could not be written there is none
        write_preview(case.job.preview, picture)
    shape = noisy.shape[1:]
    sliced = case.denoiser.spatial_dims == 2 and len(shape) == 3 and shape[2] > 1
    return InferenceResult(case.job.source, case.job.output, int(written["pred_clipped"]), sliced)


def _picture(case: _Case, nan_policy: str) -> np.ndarray:
    """The preview, black where the source has no number."""
    noisy, denoised = case.content["image"], case.content["pred"]
    source = case.job.source
    if keeps_missing(nan_policy) and scan_format(source) == "nifti":
        missing = reread_nifti(source).padding
        if missing is not None:
            noisy, denoised = (image.masked_fill(torch.from_numpy(missing), 0.0) for image in (noisy, denoised))
    return draw_preview(noisy, denoised, noisy.affine.numpy())


@contextmanager
def _explaining(job: Job) -> Iterator[None]:
    """Errors that a user can mend come out as themselves, and a lack of memory in words."""
    with surfacing_user_errors():
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"not enough memory to denoise {job.source}, with the smallest tiles too; close other programs, use "
                "--device cpu, or a machine with more."
            ) from error
