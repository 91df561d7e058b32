"""What ``import adl_monai`` offers, to people, to type checkers and to a process whose user has no name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import adl_monai

PACKAGE = Path(adl_monai.__file__).parent

PIPELINE = """
from pathlib import Path

import adl_monai
from adl_monai import AdlError, Volume


def clean(source: Path, target: Path) -> int:
    denoiser = adl_monai.load_denoiser(None)
    scan: Volume = adl_monai.read_volume(source)
    denoised: Volume = adl_monai.denoise(scan, denoiser)
    try:
        return denoised.save(target)
    except AdlError as error:
        return error.exit_code
"""


def test_all_that_is_offered_is_there_and_listed() -> None:
    assert dir(adl_monai) == sorted(adl_monai.__all__)
    for name in adl_monai.__all__:
        assert getattr(adl_monai, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'denoyse'"):
        adl_monai.denoyse  # type: ignore[attr-defined]  # noqa: B018


def test_a_type_checker_knows_the_names(tmp_path: Path) -> None:
    """Of the package's modules those that the names are in; torch, numpy and the rest would take minutes."""
    pytest.importorskip("mypy")
    (tmp_path / "right.py").write_text(PIPELINE)
    (tmp_path / "wrong.py").write_text("import adl_monai\n\nadl_monai.denoyse(3)\n")
    modules = [PACKAGE / name for name in ("__init__.py", "errors.py", "version.py", "bundle.py")]
    modules += [PACKAGE / "data" / "io.py", PACKAGE / "data" / "volume.py", PACKAGE / "stages" / "arrays.py"]
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=skip", "--config-file", "", "--cache-dir"]
    done = subprocess.run(
        [*command, str(tmp_path / "cache"), *map(str, modules), "right.py", "wrong.py"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if line.startswith(("right.py", "wrong.py"))]
    assert len(found) == 1, done.stdout
    assert 'wrong.py:3: error: Module has no attribute "denoyse"' in found[0]


def test_the_pipeline_of_the_readme(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 1000, (9, 10, 11)).astype(np.int16)
    affine = np.diag([1, 1, 2.5, 1])
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    names: dict[str, object] = {}
    exec(PIPELINE, names)
    clean = names["clean"]
    assert callable(clean)
    assert clean(tmp_path / "scan.nii.gz", tmp_path / "denoised.nii.gz") == 0
    written = nib.load(tmp_path / "denoised.nii.gz")
    assert written.get_data_dtype() == np.int16
    assert np.array_equal(written.affine, affine)
    assert not np.array_equal(np.asanyarray(written.dataobj), voxels)
    assert clean(tmp_path / "scan.nii.gz", tmp_path / "denoised.nii.gz") == 5, "an output that exists"
    scan = adl_monai.read_volume(tmp_path / "scan.nii.gz")
    assert scan.save(tmp_path / "real.nii", dtype="float32") == 0
    assert np.array_equal(nib.load(tmp_path / "real.nii").get_fdata(), voxels)


def test_a_user_without_a_name_can_import_monai() -> None:
    """``docker run -u 12345``: no name in the environment, none in the system's list."""
    pytest.importorskip("pwd")
    code = """
import os, pwd, sys
def getpwuid(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")
pwd.getpwuid = getpwuid
for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
before = dict(os.environ)
import adl_monai
assert "monai" not in sys.modules
import importlib.util
assert importlib.util.find_spec("monai") is not None, "as libraries look for one another"
from adl_monai.stages import arrays
assert "monai" in sys.modules
assert {**os.environ} == before | {name: os.environ[name] for name in set(os.environ) - set(before) - {"USER"}}
import getpass
try:
    getpass.getuser()
except (KeyError, OSError):
    print("still nameless")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "still nameless\n"
