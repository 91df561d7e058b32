"""The data list of a bundle's inference: scans and not results, and none whose result cannot be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adl_monai.data import list_cases
from adl_monai.errors import OutputError, UsageError

from .conftest import build_nifti, build_series


def scan(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return build_nifti(path, np.ones((5, 6, 7), np.int16))


def names(cases: list[dict[str, str]]) -> list[str]:
    return [Path(case["image"]).name for case in cases]


def test_results_are_no_scans(tmp_path: Path) -> None:
    for name in ("a.nii", "sub/b.nii", "out/a_denoised.nii", "out/b_denoised.nii", "out/a_denoised_preview.png"):
        scan(tmp_path / name)
    assert names(list_cases(tmp_path, tmp_path / "out", overwrite=True)) == ["a.nii", "b.nii"]
    with pytest.raises(OutputError, match="exists"):
        list_cases(tmp_path, tmp_path / "out")
    scan(tmp_path / "sub" / "b_denoised.nii")  # of an earlier run
    assert names(list_cases(tmp_path / "sub", tmp_path / "new")) == ["b.nii"]


def test_two_scans_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in "ab":
        scan(tmp_path / "in" / folder / "t1.nii.gz")
    with pytest.raises(UsageError, match=r"same name .*t1_denoised\.nii\.gz.*--output_dir"):
        list_cases(tmp_path / "in", tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out").exists()


def test_one_scan_alone(tmp_path: Path) -> None:
    path = scan(tmp_path / "a.nii.gz")
    assert list_cases(path, tmp_path / "out") == [{"image": str(path)}]
    build_series(tmp_path / "series", [0.0, 1.0, 2.0])
    assert names(list_cases(tmp_path / "series", tmp_path / "out")) == ["series"]
    with pytest.raises(OutputError, match="inside the input"):
        list_cases(tmp_path / "series", tmp_path / "series" / "out")


def test_what_is_no_scan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match="holds no scans"):
        list_cases(tmp_path)
    for name in ("notes.txt", "missing"):
        with pytest.raises(UsageError, match=name):
            list_cases(tmp_path / name)


def test_a_folder_that_cannot_be_made_is_refused_first(tmp_path: Path) -> None:
    path = scan(tmp_path / "a.nii.gz")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot be made.*--output_dir"):
        list_cases(path, tmp_path / "file" / "out")
