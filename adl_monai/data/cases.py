"""The scans of a folder as the data list that MONAI datasets take, held to where their results go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from adl_monai.data.formats import find_scans, is_scan
from adl_monai.data.monai_io import default_output_path
from adl_monai.data.output import check_output, make_folder_of
from adl_monai.data.results import results_among, without_results
from adl_monai.errors import UsageError


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
        outputs = [default_output_path(scan, output_dir) for scan in scans]
        scans = without_results(folder, scans, results_among(scans), outputs)
    if not scans:
        raise UsageError(f"{folder} holds no scans (.nii, .nii.gz, .mha, .nrrd, DICOM, PNG or TIFF).")
    if output_dir is not None:
        outputs = [default_output_path(scan, output_dir) for scan in scans]
        refuse_shared(outputs)
        for scan, output in zip(scans, outputs, strict=True):
            make_folder_of(output)
            check_output(output, scan, overwrite)
    return [{"image": str(scan)} for scan in scans]


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
