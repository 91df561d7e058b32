"""From scans to their denoised copies: runs the parts of a bundle's ``inference.json``, case after case."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from adl_monai.bundle import Denoiser, load_denoiser
from adl_monai.data.formats import output_format
from adl_monai.data.io import read_volume
from adl_monai.data.normalization import denormalize, normalize, robust_range
from adl_monai.data.volume import Volume
from adl_monai.errors import (
    AdlError,
    ModelError,
    OutOfMemoryError,
    UsageError,
    is_out_of_memory,
    surfacing_user_errors,
)
from adl_monai.stages.outputs import Job, check_outputs, is_done, plan_jobs, size_of, warn_of_spacing, write_preview
from adl_monai.stages.pipeline import Steps, run_steps
from adl_monai.stages.shards import Shard
from adl_monai.stages.stream import denoise_stream, needs_streaming
from adl_monai.stages.tally import InferenceResult, Tally

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


def infer(
    inputs: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    model: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    dtype: str = "same",
    strength: float = 1.0,
    ensemble: bool = False,
    series: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    preview: bool = False,
    progress: bool = False,
    max_memory: int | None = None,
    shard: Shard | None = None,
    report: Callable[[InferenceResult], None] | None = None,
    summarize: Callable[[str], None] | None = None,
) -> list[InferenceResult]:
    """Denoise scans and write the results in the sources' formats, geometry, intensities and dtypes.

    While one scan is denoised, the next is read and the one before is written: up to three are in memory. A scan that
    fails does not stop those after it; when all are done, an error of the first failure's kind lists them.

    Args:
        inputs: Scan files, DICOM series folders, folders of scans, or manifests.
        output: A file (for one scan), or a folder; for one DICOM series, the folder of the derived series. None writes
            ``<name>_denoised.<ext>``, or the folder ``<name>_denoised``, into the working directory.
        model: See ``adl_monai.bundle.find_bundle``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16`` for the network.
        dtype: ``same`` as the source, or ``float32``.
        strength: 0 returns the input, 1 the fully denoised image; linear between.
        ensemble: Average over mirror images: a little better, 4 (2D) or 8 times (3D) slower.
        series: SeriesInstanceUID or SeriesNumber to take from folders of several DICOM series.
        overwrite: Replace existing outputs.
        resume: Skip scans whose output is there and not older than they are, whatever model made it; an older output is
            replaced.
        preview: Also write ``<name>_denoised_preview.png``: noisy, denoised, residual.
        progress: Show a bar over the tiles.
        max_memory: Bytes that may be used, about: half for the volume, half for the network. A larger volume, if it is
            NIfTI and becomes NIfTI, is denoised box by box, with the same result. None takes half of the memory that is
            available.
        shard: Which process this is, where several share the scans; None does all. Each process is to be given the same
            inputs; it looks at the outputs of its own share alone.
        report: Called after each scan that was denoised, in the order of the scans.
        summarize: Told at the end, in one line, how many were denoised, skipped and failed, if there was more than one.

    Returns:
        Of the scans that were denoised now, in their order.

    Raises:
        UsageError: For wrong options or inputs, before anything is computed.
        OutputError: If an output exists or cannot be written, before anything is computed.
        AdlError: The first failure among the scans.
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"strength {strength} is outside 0..1.")
    if dtype not in ("same", "float32"):
        raise UsageError(f"dtype {dtype!r} is unknown; expected same or float32.")
    if resume and overwrite:
        raise UsageError("--resume keeps outputs that --overwrite replaces; pass one of the two.")
    shard = shard or Shard()
    jobs = plan_jobs([Path(path) for path in inputs], None if output is None else Path(output))
    for job in jobs:
        if dtype != "same" and output_format(job.output) == "dicom":
            raise UsageError(
                f"{job.output}: DICOM keeps the source's integers; write .nii.gz for {dtype} (-o x.nii.gz)."
            )
    # Shared out before a look at what is there: that changes while other processes work.
    own = shard.share(jobs, [size_of(job) for job in jobs]) if shard.count > 1 else jobs
    left = [job for job in own if not (resume and is_done(job))]
    check_outputs(left, overwrite or resume)
    tally = Tally(len(own), len(own) - len(left), report)
    with shard.outlasting_the_others():
        if left:
            denoisers = DenoiserChoice(
                model,
                device=shard.device(device),
                precision=precision,
                strength=strength,
                ensemble=ensemble,
                series=series,
                output_dtype=dtype,
                overwrite=overwrite or (resume and any(job.output.exists() for job in left)),
                progress=progress,
                max_memory=max_memory,
            )
            shard.use_its_cores()
            denoisers.get()  # a wrong model is an error before the first scan
            run_steps(left, _steps(denoisers, preview), tally.settle)
        if summarize is not None and len(jobs) > 1:
            of_all = f" of {len(jobs)}" if shard.count > 1 else ""
            place = f" ({shard})" if shard.count > 1 else ""
            summarize(f"{len(own)}{of_all} scans{place}: {tally}")
        tally.raise_failures()
    return tally.results


@overload
def denoise(
    image: np.ndarray,
    model: str | Path | Denoiser | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    strength: float = 1.0,
    ensemble: bool = False,
) -> np.ndarray: ...


@overload
def denoise(
    image: Volume | str | Path,
    model: str | Path | Denoiser | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    strength: float = 1.0,
    ensemble: bool = False,
) -> Volume: ...


def denoise(
    image: np.ndarray | Volume | str | Path,
    model: str | Path | Denoiser | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    strength: float = 1.0,
    ensemble: bool = False,
) -> np.ndarray | Volume:
    """Denoise one image in memory.

    Args:
        image: A (H, W) or (H, W, D) array of any intensity scale, a ``Volume``, or the path of a scan.
        model: A ``Denoiser`` from ``adl_monai.bundle.load_denoiser`` (for many images), or what ``find_bundle`` takes.
        device: As in ``infer``; ignored when a ``Denoiser`` is given.
        precision: As in ``infer``; ignored when a ``Denoiser`` is given.
        strength: 0 returns the input, 1 the fully denoised image.
        ensemble: As in ``infer``; ignored when a ``Denoiser`` is given.

    Returns:
        A float32 array for an array; a ``Volume`` with a float32 array otherwise. Nothing is rounded or clipped.

    Raises:
        UsageError: If the array has the wrong number of axes, no voxels, or values that are not finite.
        ModelError: If there is no such model, or it is 3D and the image 2D.
    """
    if not isinstance(image, np.ndarray):
        volume = image if isinstance(image, Volume) else read_volume(Path(image))
        array = denoise(
            volume.without_padding(), model, device=device, precision=precision, strength=strength, ensemble=ensemble
        )
        return replace(volume, array=array).with_padding_of(volume)
    if not 0 <= strength <= 1:
        raise UsageError(f"strength {strength} is outside 0..1.")
    if image.ndim not in (2, 3) or image.size == 0 or image.dtype.kind not in "uif":
        raise UsageError(f"an array of shape {image.shape} and dtype {image.dtype} is not a 2D or 3D grey image.")
    if not np.isfinite(image).all():
        raise UsageError(f"the array holds {int((~np.isfinite(image)).sum())} NaN or infinite values; fill them first.")
    if not isinstance(model, Denoiser):
        model = load_denoiser(model, spatial_dims=image.ndim, device=device, precision=precision, ensemble=ensemble)
    noisy = torch.from_numpy(image.astype(np.float32))[None]
    lower, upper = model.percentiles
    offset, scale = robust_range(noisy, lower, upper)
    if scale == 0:
        logger.warning("the image is constant and is returned unchanged")
        return image.astype(np.float32)
    normalized = normalize(noisy, offset, scale)
    with torch.inference_mode():
        denoised = model.inferer(normalized[None], model.network)[0]
    if strength != 1:
        denoised = normalized + strength * (denoised - normalized)
    return np.asarray(denormalize(denoised, offset, scale)[0])


def denoise_job(denoisers: DenoiserChoice, job: Job, preview: bool = False) -> InferenceResult:
    """Denoise one scan and write the result.

    Raises:
        AdlError: If the scan cannot be read, denoised or written.
    """
    with _explaining(job):
        return _denoise_job(denoisers, job, preview)


@dataclass
class _Case:
    """A scan on its way."""

    job: Job
    denoiser: Denoiser
    content: dict[Any, Any]
    """What MONAI's transforms pass on: ``image``, then ``pred`` too."""


def _steps(denoisers: DenoiserChoice, preview: bool) -> Steps[Job, _Case, InferenceResult]:
    def read(job: Job) -> _Case:
        with _explaining(job):
            return _read(denoisers, job)

    def compute(case: _Case) -> _Case:
        with _explaining(case.job):
            return _compute(case)

    def write(case: _Case) -> InferenceResult:
        with _explaining(case.job):
            return _write(case, preview)

    def streams(job: Job) -> bool:
        try:
            return _streams(denoisers, job)
        except AdlError:  # a bad file: reading it will say so, where the failure of a scan is expected
            return False

    return Steps(read, compute, write, partial(denoise_job, denoisers, preview=preview), streams)


def _streams(denoisers: DenoiserChoice, job: Job) -> bool:
    """Whether a scan is denoised from disk to disk, by pieces: alone, since it takes all the memory that is allowed."""
    return denoisers.get().inferer.can_stream(denoisers.get().network) and needs_streaming(
        job, denoisers.options.get("max_memory")
    )


def _denoise_job(denoisers: DenoiserChoice, job: Job, preview: bool) -> InferenceResult:
    if _streams(denoisers, job):
        options = {key: denoisers.options[key] for key in ("strength", "overwrite") if key in denoisers.options}
        dtype = denoisers.options.get("output_dtype", "same")
        denoiser = denoisers.get()
        clipped = denoise_stream(job, denoiser, dtype=dtype, preview=preview, **options)
        return InferenceResult(job.source, job.output, clipped)
    return _write(_compute(_read(denoisers, job)), preview)


def _read(denoisers: DenoiserChoice, job: Job) -> _Case:
    source = {"image": str(job.source), "output": str(job.output)}
    denoiser = denoisers.get()
    case = denoiser.preprocessing(source)
    fitting = denoisers.get(case["image"].ndim - 1)
    if fitting is not denoiser:
        denoiser, case = fitting, fitting.preprocessing(source)
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


def _write(case: _Case, preview: bool) -> InferenceResult:
    if preview:
        write_preview(case.job.preview, case.content["image"], case.content["pred"])
    written = case.denoiser.postprocessing(case.content)
    return InferenceResult(case.job.source, case.job.output, int(written["pred_clipped"]))


@contextmanager
def _explaining(job: Job) -> Iterator[None]:
    """Errors that a user can mend come out as themselves, and a lack of memory in words."""
    with surfacing_user_errors(), _reporting_memory(job.source):
        yield


@contextmanager
def _reporting_memory(source: Path) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"not enough memory to denoise {source}, with the smallest tiles too; close other programs, use --device "
            "cpu, or a machine with more."
        ) from error
