"""Which scans are results of denoising others: the rules for whoever searches folders."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from adl_monai.data.dicom.header import read_headers
from adl_monai.data.dicom.parse import is_dicom_file
from adl_monai.data.formats import scan_stem, scan_suffix
from adl_monai.errors import ScanFileError
from adl_monai.files import named_path

logger = logging.getLogger(__name__)

_RESULT = re.compile("(.+)_denoised")
_PREVIEW = re.compile("(.+)_denoised(?:_preview)?")


def results_among(scans: Iterable[Path]) -> set[Path]:
    """Those of the scans that are results of denoising others.

    By name: ``a_denoised.nii`` and ``a_denoised_preview.png`` beside ``a.nii.gz``, whatever the formats, or below a
    folder of results, in the sub-folders of their sources: ``out/s1/a_denoised.nii`` of ``s1/a.nii``. By header:
    folders of DICOM images that all name this program, wherever their source is.
    """
    stems = {scan: scan.name if scan.is_dir() else scan_stem(scan) for scan in scans}
    places = {(scan.parent, stem) for scan, stem in stems.items()}

    def is_result(scan: Path) -> bool:
        found = (_PREVIEW if scan.suffix.lower() == ".png" else _RESULT).fullmatch(stems[scan])
        sources = () if found is None else ((place, found[1]) for place in _places_of_source(scan.parent))
        return any(source in places for source in sources) or _was_made_here(scan)

    return {scan for scan in stems if is_result(scan)}


def _places_of_source(folder: Path) -> Iterator[Path]:
    """Where the source of a result in a folder may lie: there, or where some folders in a row are left out."""
    yield folder
    for results in (folder, *folder.parents):
        for top in results.parents:
            yield top / folder.relative_to(results)


def _was_made_here(folder: Path) -> bool:
    """Of a source, only the first image is opened."""
    if not folder.is_dir():
        return False
    made = False
    for file in sorted(folder.iterdir()):
        try:
            headers = read_headers(file) if is_dicom_file(file) else []
        except ScanFileError:  # for the reader to refuse
            return False
        if not all(header.made_here for header in headers):
            return False
        made = made or bool(headers)
    return made


def preview_path(output: Path) -> Path:
    """Where the picture of a result goes."""
    return output.with_name(f"{output.name.removesuffix(scan_suffix(output))}_preview.png")


def without_results(folder: Path, scans: Sequence[Path], earlier: set[Path], outputs: Iterable[Path]) -> list[Path]:
    """Those of the scans found in a folder that are no results; of those of earlier runs a warning tells.

    Args:
        folder: That was searched.
        scans: What was found.
        earlier: Those that `results_among` names.
        outputs: Where the results of this run will go, with a picture beside each.
    """
    of_this_run = {named_path(made) for output in outputs for made in (output, preview_path(output))}
    results = [scan for scan in scans if scan in earlier and named_path(scan) not in of_this_run]
    if results:
        logger.warning(
            "%s: %d results of an earlier run are left out (%s%s); name them to denoise them again.",
            folder,
            len(results),
            ", ".join(result.name for result in results[:3]),
            ", ..." if len(results) > 3 else "",
        )
    return [scan for scan in scans if scan not in earlier and named_path(scan) not in of_this_run]
