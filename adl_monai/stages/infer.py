"""From scans to their denoised copies, case after case."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from adl_monai.data.formats import output_format
from adl_monai.data.missing_voxels import keeps_missing
from adl_monai.data.noise_floor import keeps_means
from adl_monai.errors import UsageError
from adl_monai.files import size_of
from adl_monai.stages.one_scan import DenoiserChoice, steps_of
from adl_monai.stages.outputs import check_outputs, is_done, plan_jobs
from adl_monai.stages.pipeline import run_steps
from adl_monai.stages.shards import Shard
from adl_monai.stages.tally import InferenceResult, Tally


def infer(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    model: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    dtype: str = "same",
    strength: float = 1.0,
    ensemble: int = 2,
    noise_floor: str = "auto",
    nan_policy: str = "refuse",
    series: str | None = None,
    time_series: bool = False,
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
        inputs: Scan files, DICOM series folders, folders of scans, or manifests; one or several.
        output: A file (for one scan), or a folder; for one DICOM series, the folder of the derived series. None writes
            ``<name>_denoised.<ext>``, or the folder ``<name>_denoised``, into the working directory. What lies in
            sub-folders of an input goes into sub-folders.
        model: See ``adl_monai.bundle.find_bundle``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16`` for the network.
        dtype: ``same`` as the source, or ``float32``.
        strength: 0 returns the input, 1 the fully denoised image; linear between.
        ensemble: Mirror images to average over: 1, 2, 4 or 8 (in 2D, 8 gives the 4 there are). The more, the better and
            slower: the network runs once for each. Two gain about 0.1 dB (``benchmarks/README.md``).
        noise_floor: ``remove`` lets the mean fall where noise has lifted it, as in magnitude MRI; ``keep`` keeps local
            means, as CT, PET, SPECT and counts need; ``auto`` keeps them for DICOM of other modalities than MR, and
            warns where the mean of a scan without a modality falls noticeably.
        nan_policy: ``keep`` leaves NaN and infinite voxels of NIfTI volumes as they are, where the volume fits the
            memory; the model sees what lies beside them. ``refuse`` refuses such scans.
        series: SeriesInstanceUID or SeriesNumber to take from folders of several DICOM series; ``all`` denoises each
            into ``<name>_series_<SeriesNumber>_denoised``.
        time_series: Denoise NIfTI files of four axes too, each of their volumes by itself.
        overwrite: Replace existing outputs.
        resume: Skip scans whose output is there or appears meanwhile and is not older than they are, whatever model
            made it; an older output is replaced.
        preview: Also write ``<name>_denoised_preview.png``: noisy, denoised, residual.
        progress: Show a bar over the tiles.
        max_memory: Bytes that may be used, about: half for the volume, half for the network. A larger volume, if it is
            NIfTI and becomes NIfTI, is denoised box by box, with the same result. None takes half of the memory that is
            available.
        shard: Which process this is, where several share the scans; None does all. Each process is to be given the same
            inputs; it looks at the outputs of its own share alone.
        report: Called after each scan that was denoised, in the order of the scans.
        summarize: Told at the end, in one line each: of volumes for which adl2d was chosen; and how many scans were
            denoised, skipped and failed, if there was more than one.

    Returns:
        Of the scans that were denoised now, in their order.

    Raises:
        UsageError: For wrong options or inputs, before anything is computed.
        OutputError: If an output exists or cannot be written, before anything is computed.
        AdlError: The first failure among the scans.
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"strength {strength} is outside 0..1.")
    keeps_means(noise_floor)  # refuses what is none
    keeps_missing(nan_policy)
    if dtype not in ("same", "float32"):
        raise UsageError(f"dtype {dtype!r} is unknown; expected same or float32.")
    if resume and overwrite:
        raise UsageError("--resume keeps outputs that --overwrite replaces; pass one of the two.")
    shard = shard or Shard()
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs
    jobs = plan_jobs([Path(path) for path in inputs], None if output is None else Path(output), series == "all")
    for job in jobs:
        if dtype != "same" and output_format(job.output) == "dicom":
            raise UsageError(
                f"{job.output}: DICOM keeps the source's integers; write .nii.gz for {dtype} (-o x.nii.gz)."
            )
    # Shared out before a look at what is there: that changes while other processes work.
    own = shard.share(jobs, [size_of(job.source) for job in jobs]) if shard.count > 1 else jobs
    left = [
        replace(job, overwrite=overwrite or (resume and os.path.exists(job.output)))
        for job in own
        if not (resume and is_done(job))
    ]
    check_outputs(left, preview, replaces_previews=overwrite or resume)
    tally = Tally(len(own), len(own) - len(left), report, resume)
    with shard.outlasting_the_others():
        if left:
            denoisers = DenoiserChoice(
                model,
                device=shard.device(device),
                precision=precision,
                strength=strength,
                ensemble=ensemble,
                noise_floor=noise_floor,
                nan_policy=nan_policy,
                series=None if series == "all" else series,
                output_dtype=dtype,
                progress=progress,
                max_memory=max_memory,
            )
            shard.use_its_cores()
            denoisers.get()  # a wrong model is an error before the first scan
            run_steps(left, steps_of(denoisers, preview, time_series, resume), tally.settle)
        thick = sum(result.sliced for result in tally.results)
        if summarize is not None and model is None and thick:
            summarize(
                f"{thick} volume{'s' * (thick > 1)} with slices five or more pixels apart: adl2d, slice by slice "
                "(--model adl3d for the other)"
            )
        if summarize is not None and len(jobs) > 1:
            of_all = f" of {len(jobs)}" if shard.count > 1 else ""
            place = f" ({shard})" if shard.count > 1 else ""
            summarize(f"{len(own)}{of_all} scans{place}: {tally}")
        tally.raise_failures()
    return tally.results
