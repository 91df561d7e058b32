"""Denoising a volume larger than the memory: from one NIfTI file to another, box by box.

The same steps as a bundle's ``inference.json`` describes for a volume in memory (normalise, denoise, blend, undo the
normalisation, store like the source), and the same output.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adl_monai.bundle import Denoiser
from adl_monai.data.formats import output_format, scan_format
from adl_monai.data.nifti.file import peek_header
from adl_monai.data.nifti.sink import NiftiSink, nifti_sink
from adl_monai.data.nifti.stream import NiftiSource, open_nifti_source, unnamed_file
from adl_monai.data.noise_floor import keeps_means, warn_of_fall
from adl_monai.data.normalization import denormalize, in_fixed_range, normalize
from adl_monai.data.output import check_output
from adl_monai.data.overlap import WriteBehind
from adl_monai.data.raw_voxels import Box, RawVoxels, lengths, slabs
from adl_monai.errors import UsageError
from adl_monai.inferers.ensemble import Sums
from adl_monai.inferers.far_values import are_far, are_few, without_far_values
from adl_monai.stages.outputs import Job
from adl_monai.stages.preview import draw_preview, write_preview
from adl_monai.stages.unsuited import warn_of_content, warn_of_spacing

logger = logging.getLogger(__name__)


def can_stream(job: Job) -> bool:
    """Whether a job is a NIfTI volume of three axes, to become NIfTI.

    Raises:
        AdlError: If the source is not a sound NIfTI file, as far as its header tells.
    """
    if scan_format(job.source) != "nifti" or output_format(job.output) != "nifti":
        return False
    return len(peek_header(job.source).shape) == 3


def denoise_stream(
    job: Job,
    denoiser: Denoiser,
    *,
    strength: float = 1.0,
    noise_floor: str = "auto",
    dtype: str = "same",
    preview: bool = False,
) -> int:
    """Denoise a NIfTI volume of three axes into a NIfTI file without holding it in memory.

    Args:
        job: Source and output.
        denoiser: Whose inferer can stream its network.
        strength: As in ``adl_monai.stages.infer.infer``, like the other options.
        dtype: ``same`` or ``float32``.
        preview: Also write a picture of the middle planes.

    Returns:
        The number of voxels that did not fit the output's integer type and were saturated.

    Raises:
        AdlError: If the scan cannot be read or the output written; nothing is left behind then.
        UsageError: If means are to be kept.
    """
    if keeps_means(noise_floor):
        one_image = ", take one image (--ensemble 1), which needs less" if denoiser.inferer.ensemble > 1 else ""
        raise UsageError(
            f"{job.source} is too large for the memory: it would be denoised from disk to disk, where means cannot be "
            f"kept; give it more (--max-memory; half of that is for the scan){one_image}, or remove the noise floor "
            "(--noise-floor remove)."
        )
    check_output(job.output, job.source, job.overwrite)  # before the scan is read through, which may take minutes
    with open_nifti_source(job.source, job.output) as source:
        warn_of_spacing(job.source, source.header.affine)
        middle_planes = slice(source.shape[2] // 2, source.shape[2] // 2 + 1)
        plane = source.read((slice(0, source.shape[0]), slice(0, source.shape[1]), middle_planes))
        warn_of_content(job.source, plane, dtype == "same" and source.header.dtype.kind in "iu")
        offset, scale = in_fixed_range(source.robust_range(*denoiser.percentiles), denoiser.fixed_range)
        constant = scale == 0
        if constant:
            logger.warning("%s is constant and is written unchanged", job.source)
        middle = _MiddlePlane(source.shape) if preview else None
        with nifti_sink(job.output, job.source, source.header, dtype, job.overwrite) as sink:
            if constant:
                _copy(source, sink)
            else:
                with _sums(denoiser, source.shape, job.output) as sums:
                    mean = _run(source, sink, denoiser, (offset, scale), strength, middle, sums)
                if noise_floor == "auto":
                    warn_of_fall(job.source, source.mean, mean, offset)
        if middle is not None:
            noisy = normalize(torch.from_numpy(source.read(middle.box)), offset, scale or 1.0)[None]
            denoised = noisy if constant else middle.plane
            write_preview(job.preview, draw_preview(noisy, denoised, source.header.affine))
    return sink.clipped


def _run(
    source: NiftiSource,
    sink: NiftiSink,
    denoiser: Denoiser,
    intensities: tuple[float, float],
    strength: float,
    middle: _MiddlePlane | None,
    sums: Sums | None,
) -> float:
    """Denoise; returns the mean of what was written."""
    total = 0.0

    def read(box: Box) -> Tensor:
        noisy = torch.empty(1, 1, *lengths(box))
        for part, planes in slabs(box):
            noisy[0, 0, :, :, planes] = normalize(torch.from_numpy(source.read(part)), *intensities)
        return noisy

    extremes = normalize(torch.tensor([source.lowest, source.highest]), *intensities)
    far = are_far(*extremes.tolist()) and are_few(normalize(torch.from_numpy(source.sampled), *intensities))
    lowest, highest = (without_far_values(extremes) if far else extremes).tolist()

    def read_for_network(box: Box) -> Tensor:
        return without_far_values(read(box)) if far else read(box)

    with WriteBehind(sink.write) as behind:

        def write(box: Box, denoised: Tensor) -> None:
            pred = denoised.detach().float().cpu()
            if far:
                noisy = read(box)
                pred = pred + (noisy - without_far_values(noisy))
            if middle is not None:
                middle.take(box, pred)
            if strength != 1:
                pred = torch.lerp(read(box), pred, strength)
            # A new tensor: the inferer may go on with its own while this one is written.
            values = denormalize(pred, *intensities)[0, 0].numpy()
            nonlocal total
            total += float(values.sum(dtype=np.float64))
            behind(box, values)

        with torch.inference_mode():
            denoiser.inferer.stream(read_for_network, write, source.shape, denoiser.network, sums, (lowest, highest))
        behind.wait()
    return total / math.prod(source.shape)


@contextmanager
def _sums(denoiser: Denoiser, shape: tuple[int, int, int], output: Path) -> Iterator[_FileOfSums | None]:
    """A place on the disk for the sums over mirror images, if the inferer needs one."""
    if not denoiser.inferer.needs_sums:
        yield None
        return
    dtype = np.dtype(np.float32)
    size = math.prod(shape) * dtype.itemsize
    with unnamed_file(output, size) as file:
        file.truncate(size)
        yield _FileOfSums(RawVoxels(file, 0, shape, dtype))


class _FileOfSums:
    def __init__(self, voxels: RawVoxels) -> None:
        self._voxels = voxels

    def read(self, box: Box) -> Tensor:
        return torch.from_numpy(self._voxels.read(box))[None, None]

    def write(self, box: Box, values: Tensor) -> None:
        self._voxels.write(box, values.detach().float().numpy()[0, 0])


def _copy(source: NiftiSource, sink: NiftiSink) -> None:
    rows, columns, planes = source.shape
    for part, _ in slabs((slice(0, rows), slice(0, columns), slice(0, planes))):
        sink.write(part, source.read(part))


class _MiddlePlane:
    """Collects the denoised voxels of the plane that a preview shows."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        rows, columns, planes = shape
        self.box = slice(0, rows), slice(0, columns), slice(planes // 2, planes // 2 + 1)
        self.plane = torch.zeros(1, rows, columns, 1)

    def take(self, box: Box, denoised: Tensor) -> None:
        rows, columns, planes = box
        index = self.box[2].start - planes.start
        if 0 <= index < planes.stop - planes.start:
            self.plane[0, rows, columns, 0] = denoised[0, 0, :, :, index].float().cpu()
