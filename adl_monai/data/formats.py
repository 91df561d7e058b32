"""What names and first bytes say: which format a scan has, and which files and folders below a folder are scans."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pydicom

from adl_monai.data.dicom.parse import DICOM_SUFFIXES, discreet, is_dicom_file, parse
from adl_monai.errors import UsageError

KINDS = {
    ".mha": "mha", ".mhd": "mha", ".nrrd": "nrrd", ".png": "png", ".tif": "tiff", ".tiff": "tiff",
    ".jpg": "jpeg", ".jpeg": "jpeg", ".bmp": "bmp",
}  # fmt: skip
NIFTI_SUFFIXES = (".nii.gz", ".nii")
OUTPUT_SUFFIXES = (*NIFTI_SUFFIXES, ".mha", ".nrrd", ".png", ".tif", ".tiff")
INPUT_SUFFIXES = (*NIFTI_SUFFIXES, *KINDS, *DICOM_SUFFIXES)


def scan_suffix(path: Path) -> str:
    """The suffix of a scan's name in its own case, ``.nii.gz`` as one; empty if it is none that we read."""
    lowered = path.name.lower()
    for suffix in INPUT_SUFFIXES:
        if lowered.endswith(suffix):
            return path.name[-len(suffix) :]
    return ""


def scan_stem(path: Path) -> str:
    """The name without `scan_suffix`; dots inside it (a UID, a subject number) stay."""
    return path.name[: len(path.name) - len(scan_suffix(path))]


def scan_format(path: Path) -> str:
    """``nifti``, ``dicom``, ``mha``, ``nrrd``, ``png``, ``tiff``, ``jpeg``, ``bmp``, or empty for anything else."""
    if path.is_dir():
        return "dicom" if any(is_dicom_file(child) for child in path.iterdir()) else ""
    return _named_format(path) or ("dicom" if scan_suffix(path) or is_dicom_file(path) else "")


def _named_format(path: Path) -> str:
    """The format that a name's suffix tells; empty for DICOM, whose files need none."""
    suffix = scan_suffix(path).lower()
    return "nifti" if suffix in NIFTI_SUFFIXES else KINDS.get(suffix, "")


def output_format(path: Path) -> str:
    """The format that a path to write asks for: by its suffix; without one, DICOM (the folder of a series)."""
    return _named_format(path) or "dicom"


def is_scan(path: Path) -> bool:
    """Whether this may be a scan: a visible file of a known format, or a folder with DICOM images (`find_scans`)."""
    if not path.exists() or path.name.startswith("."):
        return False
    return _holds_images(path) if path.is_dir() else bool(scan_format(path))


def find_scans(folder: Path) -> list[Path]:
    """The scans below a folder, sorted: files of known formats, and folders that hold DICOM images.

    A folder with DICOM images in it counts as one scan, the folder itself included; one of reports, plans and other
    objects without pixels is none. Of a series one file is opened, and more only as long as none of those before has
    an image; a damaged file counts as one, so that it is refused in words. Hidden names are skipped and linked folders
    are not followed.

    Raises:
        UsageError: If a folder may not be listed.
    """
    try:
        return sorted(_walk(folder))
    except OSError as error:
        raise UsageError(
            f"{error.filename or folder}: cannot be listed ({error.strerror}); check its permissions."
        ) from error


def _walk(folder: Path) -> Iterator[Path]:
    if _holds_images(folder):
        yield folder
    for child in folder.iterdir():
        if child.name.startswith("."):
            continue
        if child.is_dir():
            if not child.is_symlink():
                yield from _walk(child)
        elif _named_format(child):  # DICOM counts by folders: no need to open thousands of slices
            yield child


def _holds_images(folder: Path) -> bool:
    return any(is_dicom_file(child) and not _is_imageless(child) for child in folder.iterdir())


def _is_imageless(path: Path) -> bool:
    """Whether a file is a DICOM object that has no pixels (SR, PR, KO, an RT plan, an index of a disc, ...)."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
        if b"\0" not in start:  # text, or nothing at all
            return False
        with discreet():
            if start[128:132] == b"DICM":
                meta = pydicom.filereader.read_file_meta_info(path)
                if "Image Storage" in pydicom.uid.UID(str(meta.get("MediaStorageSOPClassUID", ""))).name:
                    return False
            return parse(path, pixels=False, tags=["SOPClassUID", "SeriesInstanceUID", "Rows"]) is None
    except Exception:  # what is damaged, or no DICOM, is for the reader to refuse
        return False
