"""Which scans a command line means, where each result goes, and which are there already: settled before any work."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from adl_monai.data.cases import refuse_shared, spelled_alike
from adl_monai.data.dicom.read import name_series
from adl_monai.data.formats import OUTPUT_SUFFIXES, find_scans, is_scan, scan_suffix
from adl_monai.data.monai_io import default_output_path
from adl_monai.data.output import check_output, make_folder_of
from adl_monai.data.results import preview_path, results_among, without_results
from adl_monai.errors import OutputError, ScanFileError, UsageError
from adl_monai.files import SYNTHETIC, files_of, named_path
from adl_monai.manifest import load_manifest

OTHER_FORMATS = (".mgz", ".mgh", ".hdr", ".img", ".img.gz", ".nhdr", ".raw", ".npy", ".npz")
"""What people call images in formats that are not written; as the name of a folder most likely a mistake."""


@dataclass(frozen=True)
class Job:
    """One scan to denoise and where the result goes: a file, or a folder for a DICOM series."""

    source: Path
    output: Path
    overwrite: bool = False
    """Whether the output may be replaced."""
    series: str | None = None
    """The SeriesInstanceUID of one of the several series in the source, where each is denoised."""

    @property
    def preview(self) -> Path:
        """Where the picture of it goes."""
        return preview_path(self.output)


def plan_jobs(inputs: Sequence[Path], output: Path | None, every_series: bool = False) -> list[Job]:
    """Expand folders and manifests and name the outputs, whether or not they exist already.

    What a folder holds of the outputs of its own scans, from an earlier run or another process, is no scan to denoise.
    The results of what lies in its sub-folders go into sub-folders of the same names. A link is called by its own name,
    not by its target's.

    Args:
        inputs: Scan files, DICOM series folders, folders of scans, manifests (every ``image`` in them).
        output: See ``adl_monai.stages.infer.infer``.
        every_series: Whether each series of a folder that holds several is a scan of its own.

    Raises:
        UsageError: If an input does not exist or is no scan, or two inputs would share an output.
        OutputError: If an output is one of the inputs, or inside one, or has a suffix of a format that is not written.
    """
    folder = (output or Path()).resolve()
    jobs = [job for path in inputs for job in _jobs_of(_at_home(path), folder, every_series)]
    if not jobs:
        raise UsageError("no scan to denoise was given; results of this program are left out unless they are named.")
    single = len(jobs) == 1 and not any(path.suffix == ".json" for path in inputs)
    if output is not None and output.name.lower().endswith(OTHER_FORMATS) and not output.is_dir():
        raise OutputError(
            f"{output}: cannot write this format; expected one of {', '.join(OUTPUT_SUFFIXES)}, or a folder."
        )
    if output is not None and single and _names_output(output, jobs[0].source, inputs[0]):
        jobs = [replace(jobs[0], output=output.resolve())]
    elif output is not None and (output.is_file() or (scan_suffix(output) and not output.is_dir())):
        raise OutputError(f"{output} names a file, but {len(jobs)} scans need a folder; pass a folder with -o.")
    refuse_shared(job.output for job in jobs)
    _keep_apart(jobs)
    return jobs


def check_outputs(jobs: Sequence[Job], preview: bool = False, replaces_previews: bool = False) -> None:
    """Refuse what cannot be written, but for names that are too long: these cost their own scans alone.

    Args:
        jobs: Those that this process will do: another one may be writing the outputs of others.
        preview: Whether pictures will be written too.
        replaces_previews: Allow pictures that exist.

    Raises:
        OutputError: If an output or a picture exists, its folder cannot be written, or two share a picture.
    """
    jobs = [job for job in jobs if not _is_too_long(job, preview)]
    if preview:
        _check_previews(jobs, replaces_previews)
    for job in jobs:
        make_folder_of(job.output)
        if job.output.is_file() and not job.overwrite:
            raise OutputError(
                f"output {job.output} exists; pass --overwrite to replace it, --resume to leave it, or another -o."
            )
        check_output(job.output, job.source, job.overwrite)


def check_again(job: Job, preview: bool, resume: bool) -> None:
    """What there is to ask of a single scan, just before it is read.

    Raises:
        OutputError: If a name is too long, or another process has made the output meanwhile.
    """
    if _is_too_long(job, preview):
        raise OutputError(
            f"{job.source}: what is to be written of it, {job.output.name[:24]}..., has too long a name for this file "
            "system (most take 255 bytes); rename the scan, or denoise it alone and name the output with -o."
        )
    if resume and is_done(job):
        raise OutputError(f"{job.output}: another process wrote this output meanwhile; it was left as it is.")


def is_done(job: Job) -> bool:
    """Whether the output is there and not older than its source.

    An output gets its name when it is complete, so that none is half-written. What model made it is not asked.
    """
    try:
        made = [file.stat().st_mtime_ns for file in files_of(job.output)]
        return bool(made) and min(made) >= max((file.stat().st_mtime_ns for file in files_of(job.source)), default=0)
    except OSError:  # a name that is too long; or another process replaces a series right now
        return False


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
        return list(dict.fromkeys(Path(case.image) for case in cases if not case.image.startswith(SYNTHETIC)))
    path = named_path(path)
    if path.is_dir():
        scans = find_scans(path)
        if not scans:
            raise UsageError(f"folder {path} holds no scans (.nii, .nii.gz, .mha, .nrrd, DICOM, PNG or TIFF).")
        return scans
    if not is_scan(path):
        raise UsageError(f"{path} is not a scan: expected .nii, .nii.gz, .mha, .nrrd, DICOM, PNG or TIFF.")
    return [path]


def _jobs_of(path: Path, folder: Path, every_series: bool) -> list[Job]:
    """The scans that an input stands for; of those that were found, not named, without what was denoised already."""
    scans = _expand(path)
    top = named_path(path)
    below = {scan: scan.parent.relative_to(top) for scan in scans if path.is_dir() and scan != top}
    earlier = results_among(below)
    jobs = [Job(scan, default_output_path(scan, folder / below.get(scan, ""))) for scan in scans if scan not in earlier]
    if every_series:
        jobs = [one for job in jobs for one in _each_series(job)]
    kept = without_results(path, list(below), earlier, [job.output for job in jobs])
    return [job for job in jobs if job.source not in below or job.source in kept]


def _each_series(job: Job) -> list[Job]:
    """A job for each of several series in a folder; what is wrong with the folder itself, its own job will say."""
    try:
        series = name_series(job.source) if job.source.is_dir() else {}
    except (ScanFileError, UsageError):
        return [job]
    if len(series) == 1:
        return [replace(job, series=uid) for uid in series]
    stem = job.output.name.removesuffix("_denoised")
    return [
        replace(job, output=job.output.with_name(f"{stem}_series_{name}_denoised"), series=uid)
        for uid, name in series.items()
    ] or [job]


def _is_too_long(job: Job, preview: bool) -> bool:
    """Whether the file system refuses the name of the output, or of its picture while that is written."""
    names = [job.output.name, *([f".{job.preview.name}.tmp"] if preview else [])]
    try:
        place = next(parent for parent in job.output.parents if parent.is_dir())
        for name in names:
            with suppress(FileNotFoundError):
                (place / name).lstat()
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def _names_output(output: Path, source: Path, given: Path) -> bool:
    """Whether ``-o`` is the result itself, not the folder to put it into."""
    if scan_suffix(output):
        return not output.is_dir()
    return source.is_dir() and named_path(_at_home(given)) == source  # a DICOM series becomes a folder


def _check_previews(jobs: Sequence[Job], overwrite: bool) -> None:
    sources = {job.source.resolve() for job in jobs}
    counts = Counter(spelled_alike(job.preview) for job in jobs)
    for job in jobs:
        if counts[spelled_alike(job.preview)] > 1:
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
