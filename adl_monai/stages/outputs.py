"""Which scans a command line means, where each result goes, and which are there already: settled before any work."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from adl_monai.data.cases import preview_path, refuse_shared, without_results
from adl_monai.data.formats import OUTPUT_SUFFIXES, find_scans, is_scan, scan_suffix
from adl_monai.data.geometry import spacing_from_affine
from adl_monai.data.monai_io import default_output_path
from adl_monai.data.output import check_output, make_folder_of
from adl_monai.errors import OutputError, UsageError
from adl_monai.files import named_path, replacing
from adl_monai.manifest import load_manifest

logger = logging.getLogger(__name__)

USUAL_MM = (0.02, 20.0)
"""Voxel edges that images of patients have, from micro-CT to thick slices; others are most likely a wrong unit."""

SMALLEST_PICTURE = 256  # pixels high, or little less

OTHER_FORMATS = (".mgz", ".mgh", ".hdr", ".img", ".img.gz", ".nhdr", ".raw", ".npy", ".npz")
"""What people call images in formats that are not written; as the name of a folder most likely a mistake."""


@dataclass(frozen=True)
class Job:
    """One scan to denoise and where the result goes: a file, or a folder for a DICOM series."""

    source: Path
    output: Path

    @property
    def preview(self) -> Path:
        """Where the picture of it goes."""
        return preview_path(self.output)


def plan_jobs(inputs: Sequence[Path], output: Path | None) -> list[Job]:
    """Expand folders and manifests and name the outputs, whether or not they exist already.

    What a folder holds of the outputs of its own scans, from an earlier run or another process, is no scan to denoise.
    A link is called by its own name, not by its target's.

    Args:
        inputs: Scan files, DICOM series folders, folders of scans, manifests (every ``image`` in them).
        output: See ``adl_monai.stages.infer.infer``.

    Raises:
        UsageError: If an input does not exist or is no scan, or two inputs would share an output.
        OutputError: If an output is one of the inputs, or inside one, or has a suffix of a format that is not written.
    """
    folder = (output or Path()).resolve()
    sources = [scan for path in inputs for scan in _scans_of(path, folder)]
    if not sources:
        raise UsageError("no input scans were given.")
    single = len(sources) == 1 and not any(path.suffix == ".json" for path in inputs)
    if output is not None and output.name.lower().endswith(OTHER_FORMATS) and not output.is_dir():
        raise OutputError(
            f"{output}: cannot write this format; expected one of {', '.join(OUTPUT_SUFFIXES)}, or a folder."
        )
    if output is not None and single and _names_output(output, sources[0], inputs[0]):
        jobs = [Job(sources[0], output.resolve())]
    else:
        if output is not None and (output.is_file() or (scan_suffix(output) and not output.is_dir())):
            raise OutputError(f"{output} names a file, but {len(sources)} scans need a folder; pass a folder with -o.")
        jobs = [_job(source, folder) for source in sources]
    refuse_shared(job.output for job in jobs)
    _keep_apart(jobs)
    return jobs


def check_outputs(jobs: Sequence[Job], overwrite: bool, preview: bool = False) -> None:
    """Refuse what cannot be written.

    Args:
        jobs: Those that this process will do: another one may be writing the outputs of others.
        overwrite: Allow outputs that exist.
        preview: Whether pictures will be written too.

    Raises:
        OutputError: If an output or a picture exists, its folder cannot be written, or two share a picture.
    """
    if preview:
        _check_previews(jobs, overwrite)
    for job in jobs:
        make_folder_of(job.output)
        if job.output.is_file() and not overwrite:
            raise OutputError(
                f"output {job.output} exists; pass --overwrite to replace it, --resume to leave it, or another -o."
            )
        check_output(job.output, job.source, overwrite)


def is_done(job: Job) -> bool:
    """Whether the output is there and not older than its source.

    An output gets its name when it is complete, so that none is half-written. What model made it is not asked.
    """
    made = [file.stat().st_mtime_ns for file in _files(job.output)]
    return bool(made) and min(made) >= max((file.stat().st_mtime_ns for file in _files(job.source)), default=0)


def size_of(job: Job) -> int:
    """Bytes of a scan's files."""
    return sum(file.stat().st_size for file in _files(job.source))


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


def draw_preview(noisy: Tensor, denoised: Tensor, affine: np.ndarray) -> np.ndarray:
    """Noisy, denoised and the amplified residual side by side as 8-bit greys; small slices are enlarged.

    Args:
        noisy: (1, H, W[, D]), about [0, 1].
        denoised: Same shape.
        affine: (4, 4) voxel to RAS+ mm, which tells what is up.
    """
    from adl_monai.engines.preview import preview_row

    row = preview_row(noisy, denoised, affine=affine)[0]
    enlarge = max(1, SMALLEST_PICTURE // row.shape[0])
    row = row.repeat_interleave(enlarge, 0).repeat_interleave(enlarge, 1)
    return np.asarray((row * 255).round().byte())


def write_preview(path: Path, picture: np.ndarray) -> None:
    """Write what ``draw_preview`` gave as a PNG."""
    from PIL import Image

    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def _at_home(path: Path) -> Path:
    """A leading ``~`` stands for the home folder, unless it is just how a file's name begins."""
    if path.exists():
        return path
    try:
        return path.expanduser()
    except RuntimeError:  # no such user
        return path


def _expand(path: Path) -> list[Path]:
    if not path.exists():
        raise UsageError(f"input {path} does not exist.")
    if path.suffix.lower() == ".json":
        manifest = load_manifest(path)
        cases = (*manifest.training, *manifest.validation, *manifest.test)
        return list(dict.fromkeys(Path(case.image) for case in cases if not case.image.startswith("synthetic:")))
    path = named_path(path)
    if path.is_dir():
        scans = find_scans(path)
        if not scans:
            raise UsageError(f"folder {path} holds no scans (.nii, .nii.gz, .mha, .nrrd, DICOM, PNG or TIFF).")
        return scans
    if not is_scan(path):
        raise UsageError(f"{path} is not a scan: expected .nii, .nii.gz, .mha, .nrrd, DICOM, PNG or TIFF.")
    return [path]


def _scans_of(path: Path, folder: Path) -> list[Path]:
    """The scans that an input stands for; of those that were found, not named, without the outputs of the others."""
    path = _at_home(path)
    scans = _expand(path)
    return without_results(path, scans, folder) if path.is_dir() else scans


def _job(source: Path, folder: Path) -> Job:
    return Job(source, default_output_path(source, folder, "denoised", None))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return [child for child in path.iterdir() if child.is_file()]
    return [path] if path.is_file() else []


def _names_output(output: Path, source: Path, given: Path) -> bool:
    """Whether ``-o`` is the result itself, not the folder to put it into."""
    if scan_suffix(output):
        return not output.is_dir()
    return source.is_dir() and named_path(_at_home(given)) == source  # a DICOM series becomes a folder


def _check_previews(jobs: Sequence[Job], overwrite: bool) -> None:
    sources = {job.source.resolve() for job in jobs}
    counts = Counter(job.preview for job in jobs)
    for job in jobs:
        if counts[job.preview] > 1:
            raise OutputError(
                f"several scans would share the picture {job.preview}; give them in separate runs with different -o "
                "folders, or leave out --preview."
            )
        if job.preview.resolve() in sources:
            raise OutputError(f"the picture {job.preview} is an input; write to another folder with -o.")
        if job.preview.exists() and not (overwrite and job.preview.is_file()):
            raise OutputError(f"picture {job.preview} exists; pass --overwrite to replace it, or another -o.")


def _keep_apart(jobs: Sequence[Job]) -> None:
    sources = {job.source.resolve(): job.source for job in jobs}
    for job in jobs:
        output = job.output.resolve()
        if output in sources:
            raise OutputError(f"output {job.output} is an input; write to another folder with -o.")
        for parent in output.parents:
            if parent in sources:
                raise OutputError(
                    f"output {job.output} lies inside the input {sources[parent]}; choose a place outside it with -o."
                )
