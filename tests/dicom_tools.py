"""The judges of DICOM files: dicom3tools' validators and dcmtk's reader; and their servers.

A test that needs one is skipped where it is not installed, except in continuous integration (the variable CI is set).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

PACKAGES = {
    "dciodvfy": "dicom3tools", "dcentvfy": "dicom3tools", "dcmdump": "dcmtk", "dcmconv": "dcmtk", "storescu": "dcmtk",
    "echoscu": "dcmtk", "Orthanc": "orthanc",
}  # fmt: skip


def require_tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")  # where Orthanc is
    if found is None:
        message = f"{name} is not installed (Debian package {PACKAGES[name]})"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def findings(path: Path) -> set[str]:
    """The errors and warnings of dciodvfy, each naming the element and its place."""
    done = subprocess.run([require_tool("dciodvfy"), "-new", str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert lines, "dciodvfy says at least which kind of object it found"
    return {line for line in lines if line.startswith(("Error", "Warning"))}


def inconsistencies(paths: Sequence[Path]) -> str:
    """What dcentvfy says of instances that contradict one another in patient, study, series or frame of reference."""
    command = [require_tool("dcentvfy"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def dump(path: Path) -> str:
    """dcmdump's listing; fails if it finds fault with the file."""
    command = [require_tool("dcmdump"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip(), done.stderr
    return done.stdout
