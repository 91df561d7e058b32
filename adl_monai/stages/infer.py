"""From scans to their denoised copies: runs the parts of a bundle's ``inference.json``, one case at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from adl_monai.stages.outputs import Job, plan_jobs, warn_of_spacing, write_preview
from adl_monai.stages.stream import StreamingInferer, denoise_stream, needs_streaming

logger = logging.getLogger(__name__)


class DenoiserChoice:
    """The model that was asked for, or else the shipped one for each kind of image; each is loaded once.

    Args:
        model: See ``adl_monai.bundle.find_bundle``.
        max_memory: See ``infer``.
        **options: See ``adl_monai.bundle.load_denoiser``.
    """

    def __init__(self, model: str | Path | None, max_memory: int | None = None, **options: Any) -> None:
        self.model = model
        self.max_memory = max_memory
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


@dataclass(frozen=True)
class InferenceResult:
    """One denoised scan."""

    source: Path
    output: Path
    clipped: int
    """Voxels that did not fit the output's integer type and were saturated."""


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
    preview: bool = False,
    progress: bool = False,
    max_memory: int | None = None,
    report: Callable[[InferenceResult], None] | None = None,
) -> list[InferenceResult]:
    """Denoise scans and write the results in the sources' formats, geometry, intensities and dtypes.

    A scan that fails does not stop those after it; when all are done, the first failure is raised.

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
        preview: Also write ``<name>_denoised_preview.png``: noisy, denoised, residual.
        progress: Show a bar over the tiles.
        max_memory: Bytes that a volume in memory may take; a larger one, if it is NIfTI and becomes NIfTI, is denoised
            box by box, with the same result. None takes half of the memory that is available.
        report: Called after each scan.

    Raises:
        UsageError: For wrong options or inputs, before anything is computed.
        OutputError: If an output exists or cannot be written, before anything is computed.
        AdlError: The first failure among the scans.
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"strength {strength} is outside 0..1.")
    if dtype not in ("same", "float32"):
        raise UsageError(f"dtype {dtype!r} is unknown; expected same or float32.")
    jobs = plan_jobs([Path(path) for path in inputs], None if output is None else Path(output), overwrite)
    for job in jobs:
        if dtype != "same" and output_format(job.output) == "dicom":
            raise UsageError(
                f"{job.output}: DICOM keeps the source's integers; write .nii.gz for {dtype} (-o x.nii.gz)."
            )
    denoisers = DenoiserChoice(
        model,
        max_memory,
        device=device,
        precision=precision,
        strength=strength,
        ensemble=ensemble,
        series=series,
        output_dtype=dtype,
        overwrite=overwrite,
        progress=progress,
    )
    denoisers.get()  # a wrong model is an error before the first scan
    results: list[InferenceResult] = []
    failures: list[AdlError] = []
    for job in jobs:
        try:
            result = denoise_job(denoisers, job, preview)
        except AdlError as error:
            if len(jobs) == 1:
                raise
            logger.error("%s: %s", job.source, error)
            failures.append(error)
            continue
        results.append(result)
        if report is not None:
            report(result)
    if failures:
        summary = type(failures[0])(f"{len(failures)} of {len(jobs)} scans failed; the first: {failures[0]}")
        raise summary from failures[0]
    return results


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
    with surfacing_user_errors(), _reporting_memory(job.source):
        return _denoise_job(denoisers, job, preview)


def _denoise_job(denoisers: DenoiserChoice, job: Job, preview: bool) -> InferenceResult:
    source = {"image": str(job.source), "output": str(job.output)}
    denoiser = denoisers.get()
    if isinstance(denoiser.inferer, StreamingInferer) and needs_streaming(job, denoisers.max_memory):
        options = {key: denoisers.options[key] for key in ("strength", "overwrite") if key in denoisers.options}
        dtype = denoisers.options.get("output_dtype", "same")
        clipped = denoise_stream(job, denoiser, denoiser.inferer, dtype=dtype, preview=preview, **options)
        return InferenceResult(job.source, job.output, clipped)
    case = denoiser.preprocessing(source)
    fitting = denoisers.get(case["image"].ndim - 1)
    if fitting is not denoiser:
        denoiser, case = fitting, fitting.preprocessing(source)
    noisy = case["image"]
    warn_of_spacing(job.source, noisy.affine.numpy(), noisy.ndim - 1)
    if noisy.meta.get("constant_image"):
        logger.warning("%s is constant and is written unchanged", job.source)
        case["pred"] = noisy.clone()
    else:
        with torch.inference_mode():
            case["pred"] = denoiser.inferer(noisy[None], denoiser.network)[0]
    if preview:
        write_preview(job.preview, noisy, case["pred"])
    case = denoiser.postprocessing(case)
    return InferenceResult(job.source, job.output, int(case["pred_clipped"]))


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
