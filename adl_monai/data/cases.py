"""The scans of a folder as the data list that MONAI datasets take."""

from __future__ import annotations

from pathlib import Path

from adl_monai.data.formats import find_scans


def list_cases(folder: str | Path) -> list[dict[str, str]]:
    """One ``{"image": path}`` for each scan below ``folder``; a DICOM series folder is one scan."""
    return [{"image": str(path)} for path in find_scans(Path(folder))]
