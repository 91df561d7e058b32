"""The built wheel holds everything: installed alone in a new environment, it denoises a scan."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy, so that building leaves nothing in the working tree."""
    source = tmp_path / "source"
    source.mkdir()
    for name in (
        "adl_monai",
        "pipelines",
        "tests",
        "setup.cfg",
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
    ):
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    return source


def test_the_sdist_builds_the_wheel_and_holds_no_part_of_the_tests(source: Path) -> None:
    build = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    subprocess.run([sys.executable, "-c", build], check=True, cwd=source, capture_output=True)
    (sdist,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"adl_monai/py.typed", "pipelines/adl3d/models/model.pt", "LICENSE", "MANIFEST.in"} <= names
    assert not [name for name in names if name.startswith("tests")]


def test_the_wheel_denoises_in_a_clean_environment(
    source: Path, tmp_path: Path, identity_model: Callable[[int], Path]
) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)], check=True, cwd=tmp_path
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for dims in (2, 3):
        for name in ("train", "default", "multi_gpu_train", "evaluate", "inference", "metadata"):
            assert f"adl_monai/pipelines/adl{dims}d/configs/{name}.json" in names
        assert f"adl_monai/pipelines/adl{dims}d/configs/logging.conf" in names
        assert f"adl_monai/pipelines/adl{dims}d/LICENSE" in names
    assert "adl_monai/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "pipelines/"))]

    # A new environment whose only package is the wheel; its dependencies are read from this one, whose own
    # installation of the project (a .pth file) is not followed from there.
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    site = Path(
        subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
    )
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    scan = tmp_path / "scan.nii.gz"
    voxels = np.random.default_rng(0).integers(0, 1000, (19, 21, 17)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, 2.5, 1])), scan)
    where = "import adl_monai, adl_monai.pipelines as p; print(adl_monai.__file__, list(p.__path__))"
    found = subprocess.check_output([python, "-c", where], text=True, cwd=tmp_path)
    assert found.count(str(site)) == 2, found
    command = [environment / "bin" / "adl-monai", "infer", scan, "--model", identity_model(3), "--precision", "fp32"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    denoised = nib.load(tmp_path / "scan_denoised.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(denoised.dataobj), voxels)
