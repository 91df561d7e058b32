"""The scans of a folder as the data list that MONAI datasets take, held to where their results go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from adl_monai.data.formats import find_scans, is_scan, scan_suffix
from adl_monai.data.monai_io import default_output_path
from adl_monai.data.output import check_output, make_folder_of
from adl_monai.data.results import results_among, tell_left_out
from adl_monai.errors import UsageError
from adl_monai.files import named_path


def list_cases(
    folder: str | Path, output_dir: str | Path | None = None, overwrite: bool = False
) -> list[dict[str, str]]:
    """One ``{"image": path}`` for each scan below a folder; a DICOM series folder is one scan.

    Args:
        folder: Or a single scan.
        output_dir: Where `SaveImageLiked` will write; what cannot be written is refused now. None checks nothing.
        overwrite: Whether results that exist may be replaced.

    Raises:
        UsageError: If there are no scans, or the results of two would have one name.
        OutputError: If a result cannot be written, see `check_output`.
    """
    folder = Path(folder)
    scans = [folder] if folder.is_file() and is_scan(folder) else find_scans(folder)
    if output_dir is not None and folder.is_dir():
        scans = without_results(folder, scans, Path(output_dir))
    if not scans:
        raise UsageError(f"{folder} holds no scans (.nii, .nii.gz, .mha, .nrrd, DICOM, PNG or TIFF).")
    if output_dir is not None:
        outputs = [default_output_path(scan, output_dir) for scan in scans]
        refuse_shared(outputs)
        for scan, output in zip(scans, outputs, strict=True):
            make_folder_of(output)
            check_output(output, scan, overwrite)
    return [{"image": str(scan)} for scan in scans]


def without_results(folder: Path, scans: Sequence[Path], output_dir: Path) -> list[Path]:
    """Those of the scans found in a folder that are no results, in ``output_dir`` or, as `results_among` finds them, of
    an earlier run; of the latter a warning tells.
    """
    of_this_run, earlier = _made(scans, output_dir), results_among(scans)
    tell_left_out(folder, [scan for scan in scans if scan in earlier and named_path(scan) not in of_this_run])
    return [scan for scan in scans if scan not in earlier and named_path(scan) not in of_this_run]


def refuse_shared(outputs: Iterable[Path]) -> None:
    """Refuse results of which one would replace another.

    Raises:
        UsageError: Naming the first.
    """
    paths = list(outputs)
    counts = Counter(spelled_alike(path) for path in paths)
    shared = [path for path in paths if counts[spelled_alike(path)] > 1]
    if shared:
        raise UsageError(
            f"several inputs have the same name (a and A count as one) and would all be written to {shared[0]}; give "
            "them in separate runs with different -o folders (--output_dir in MONAI's runner)."
        )


def spelled_alike(path: Path) -> str:
    """Equal for names that are one to file systems which do not tell a from A."""
    return str(path).casefold()


def preview_path(output: Path) -> Path:
    """Where the picture of a result goes."""
    return output.with_name(f"{output.name.removesuffix(scan_suffix(output))}_preview.png")


def _made(scans: Iterable[Path], output_dir: Path) -> set[Path]:
    outputs = [default_output_path(scan, output_dir) for scan in scans]
    return {named_path(made) for output in outputs for made in (output, preview_path(output))}
