"""NaN voxels: refused, or kept as they are without a trace in what lies beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import adl_monai
from adl_monai.data.io import read_volume, write_volume
from adl_monai.data.missing_voxels import filled_from_beside
from adl_monai.errors import OutputError, ScanFileError, UsageError
from adl_monai.stages.infer import infer
from tests.test_shipped_models import noisy_phantom

Model = Callable[..., Path]
AFFINE = np.array([[-1.5, 0.1, 0, 10], [0.1, 1, 0.2, -7], [0, -0.2, 2, 3], [0, 0, 0, 1.0]])


def with_holes(scan: np.ndarray) -> np.ndarray:
    """A region, single voxels and an infinite one without numbers."""
    holed = scan.copy()
    holed[:5, :, 3:] = np.nan
    holed[9::7, 2::6, 1::5] = np.nan
    holed[12, 3, 2] = -np.inf
    return holed


@pytest.fixture
def scan(rng: np.random.Generator) -> np.ndarray:
    return with_holes(rng.normal(500, 100, (19, 16, 14)).astype(np.float32))


def save(path: Path, scan: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(scan, AFFINE), path)
    return path


def test_what_lies_beside_is_mirrored() -> None:
    row = np.array([0, 0, 0, 3, 4, 0, 6, 7, 8, 0, 0, 0, 0], np.float32)
    filled = filled_from_beside(row, row == 0)
    assert filled[:5].tolist() == [6, 3, 4, 3, 4], "mirrored into the other hole: the edge's own value"
    assert filled[5] in (3, 7)
    assert filled[6:].tolist() == [6, 7, 8, 7, 6, 8, 4]
    deep = np.random.default_rng(0).normal(size=(7, 6, 5))
    assert np.array_equal(
        filled_from_beside(deep, np.zeros(deep.shape, bool) | (np.arange(5) == 0))[..., 0], deep[..., 2]
    )


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_they_come_back_and_the_others_as_without_them(
    scan: np.ndarray, suffix: str, dtype: str, tmp_path: Path, identity_model: Model
) -> None:
    source = save(tmp_path / f"scan{suffix}", scan.astype(dtype))
    infer(source, tmp_path / "out.nii", model=identity_model(3), nan_policy="keep", preview=True)
    result = nib.load(tmp_path / "out.nii")
    np.testing.assert_allclose(result.get_fdata(), scan, rtol=1e-4)  # NaN and infinities at the same places
    assert result.get_data_dtype() == np.dtype(dtype)
    assert np.array_equal(result.affine, nib.load(source).affine)
    picture = np.asarray(Image.open(tmp_path / "out_preview.png"))
    assert (picture == 0).mean() > 0.1, "black where there is no number"


def test_the_scan_is_warned_of_once(
    scan: np.ndarray, tmp_path: Path, identity_model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    image = nib.Nifti1Image(scan, AFFINE)
    image.set_sform(AFFINE, 0)
    image.set_qform(AFFINE, 0)
    nib.save(image, tmp_path / "scan.nii")
    infer(tmp_path / "scan.nii", tmp_path / "out.nii", model=identity_model(3), nan_policy="keep", preview=True)
    assert caplog.text.count("are both 0") == 1


def test_a_model_sees_nothing_of_them() -> None:
    """Single ones filled with a constant would be spots, and show in the voxels around them."""
    noisy, clean = noisy_phantom(3, 0.1)
    holed = with_holes(noisy)
    whole, around = (adl_monai.denoise(one, nan_policy="keep", ensemble=1) for one in (noisy, holed))
    there = np.isfinite(holed)
    assert np.array_equal(around[~there], holed[~there], equal_nan=True)
    errors = [np.sqrt(np.mean((one - clean)[there] ** 2)) for one in (whole, around)]
    assert errors[1] < 1.05 * errors[0]


def test_arrays_volumes_and_files_alike(scan: np.ndarray, tmp_path: Path, identity_model: Model) -> None:
    model = identity_model(3, 0.1)
    path = save(tmp_path / "scan.nii", scan)
    array = adl_monai.denoise(scan, model, nan_policy="keep")
    volume = adl_monai.denoise(path, model, nan_policy="keep")
    again = adl_monai.denoise(read_volume(path, nan_policy="keep"), model)
    for one in (volume.array, again.array):
        assert np.array_equal(one, array, equal_nan=True)
    volume.save(tmp_path / "saved.nii")
    assert np.array_equal(read_volume(tmp_path / "saved.nii", nan_policy="keep").array, array, equal_nan=True)
    assert array.dtype == np.float32
    assert not np.array_equal(array, scan, equal_nan=True), "the model did something"


def test_unless_asked_for_they_are_refused(scan: np.ndarray, tmp_path: Path, identity_model: Model) -> None:
    model, count = identity_model(3), int((~np.isfinite(scan)).sum())
    path = save(tmp_path / "scan.nii", scan)
    with pytest.raises(ScanFileError, match=rf"{count} of {scan.size} voxels are NaN .*--nan-policy keep"):
        infer(path, tmp_path / "out.nii", model=model)
    with pytest.raises(UsageError, match=rf"{count} of the array's {scan.size} values .*nan_policy='keep'"):
        adl_monai.denoise(scan, model)
    for call in (lambda: infer(path, model=model, nan_policy="fill"), lambda: adl_monai.denoise(scan, nan_policy="")):
        with pytest.raises(UsageError, match="expected one of refuse, keep"):
            call()
    assert not (tmp_path / "out.nii").exists()


def test_where_there_is_nothing_else_or_no_place_for_them(
    tmp_path: Path, scan: np.ndarray, identity_model: Model
) -> None:
    model = identity_model(3)
    nothing = save(tmp_path / "nothing.nii", np.full((8, 8, 8), np.nan, np.float32))
    with pytest.raises(ScanFileError, match="512 of 512 voxels are NaN"):
        infer(nothing, tmp_path / "out.nii", model=model, nan_policy="keep")
    with pytest.raises(UsageError, match="512 of the array's 512"):
        adl_monai.denoise(np.full((8, 8, 8), np.inf), model, nan_policy="keep")
    path = save(tmp_path / "scan.nii", scan)
    with pytest.raises(OutputError, match=r"NaN voxels are kept in NIfTI alone; name a \.nii\.gz"):
        infer(path, tmp_path / "out.mha", model=model, nan_policy="keep")
    broken = np.where(np.isfinite(scan), scan, 0)
    broken[7, 7, 7] = np.nan  # a number in the source
    with pytest.raises(OutputError, match=r"1 of .* nothing was written"):
        write_volume(
            tmp_path / "out.nii",
            broken,
            like=path,
            affine=read_volume(path, nan_policy="keep").affine,
            nan_policy="keep",
        )
    assert not list(tmp_path.glob("out*"))
