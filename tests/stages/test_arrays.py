"""What ``adl_monai.denoise`` takes, and what it refuses in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

import adl_monai
from adl_monai.data.io import read_volume
from adl_monai.data.voxels import FEWEST_STEPS
from adl_monai.errors import ModelError, UsageError
from adl_monai.stages.infer import infer
from tests.stages.test_infer import write_nifti

Model = Callable[..., Path]


@pytest.fixture
def noisy(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(100, 20, (16, 16, 16))


@pytest.mark.parametrize(
    ("image", "advice"),
    [
        (torch.zeros(16, 16, 16), r"Tensor; expected a numpy array, a Volume or the path of a scan: .*tensor\[0\]"),
        (MetaTensor(torch.zeros(1, 16, 16)), r"MetaTensor.*tensor\[0\]"),
        ([[1.0, 2.0], [3.0, 4.0]], r"list.*numpy\.asarray"),
        (np.float32(1), r"float32.*numpy\.asarray"),
        (None, "NoneType"),
        (7, "int"),
    ],
)
def test_what_is_no_image_is_refused(image: object, advice: str) -> None:
    with pytest.raises(UsageError, match=f"the image is a {advice}"):
        adl_monai.denoise(image)


def test_an_ensemble_of_three_is_an_options_error(noisy: np.ndarray, identity_model: Model, tmp_path: Path) -> None:
    model = identity_model(3)
    with pytest.raises(UsageError, match="3"):
        adl_monai.denoise(noisy, model, ensemble=3)
    write_nifti(tmp_path / "scan.nii", noisy.astype(np.float32))
    with pytest.raises(UsageError, match="3"):
        infer([tmp_path / "scan.nii"], tmp_path / "out", model=model, ensemble=3)


@pytest.mark.parametrize(
    "coarse",
    [
        lambda noisy: noisy + 1e9,
        lambda noisy: (noisy + 1e9).astype(np.int64),
        lambda noisy: noisy.astype(np.int64) + 2**60,
        lambda noisy: noisy * 1e-300,
        lambda noisy: noisy * 1e-45,
        lambda noisy: -noisy - 3e7,
    ],
)
def test_values_that_float32_cannot_tell_apart_are_refused(
    coarse: Callable[[np.ndarray], np.ndarray], noisy: np.ndarray, identity_model: Model
) -> None:
    with pytest.raises(UsageError, match=r"float32 has only \d+ numbers.*Subtract the offset"):
        adl_monai.denoise(coarse(noisy), identity_model(3))


@pytest.mark.parametrize("steps", [FEWEST_STEPS - 96, FEWEST_STEPS])
def test_arrays_are_refused_where_files_are_warned_of(
    steps: int, tmp_path: Path, identity_model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """One measure for both: as many numbers of float32 as 12 bits have."""
    levels = np.where(np.indices((16, 16, 16)).sum(0) % 2, 2.0**24, 2.0**24 - steps)  # the largest that are 1 apart
    levels[0, 0, 0] += 0.3  # which float32 does not hold
    nib.save(nib.Nifti1Image(levels, np.eye(4)), tmp_path / "scan.nii")
    read_volume(tmp_path / "scan.nii")
    coarse = steps < FEWEST_STEPS
    assert ("contrasts are lost" in caplog.text) == coarse
    if coarse:
        with pytest.raises(UsageError, match=rf"only {steps} numbers"):
            adl_monai.denoise(levels, identity_model(3))
    else:
        adl_monai.denoise(levels, identity_model(3))


def test_a_mask_is_refused_not_forgotten(noisy: np.ndarray, identity_model: Model) -> None:
    model = identity_model(3)
    holes = noisy.copy()
    holes[:2] = np.nan
    for masked in (np.ma.masked_less(noisy, 90), np.ma.masked_invalid(holes)):
        with pytest.raises(UsageError, match=rf"{masked.mask.sum()} of the array's 4096 .*masked.*\.filled\(value\)"):
            adl_monai.denoise(masked, model)
    plain = adl_monai.denoise(np.ma.array(noisy), model)
    assert type(plain) is np.ndarray
    assert np.array_equal(plain, adl_monai.denoise(noisy, model))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": None}, "device is None.*cuda"),
        ({"device": 0}, "device is 0.*cuda"),
        ({"strength": "0.5"}, "strength is '0.5'.*from 0 to 1"),
        ({"strength": None}, "strength is None"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"model": 3}, "model is a int; expected a name"),
    ],
)
@pytest.mark.parametrize("path", [False, True])
def test_options_that_are_none_are_refused_in_words(
    options: dict[str, object], words: str, path: bool, noisy: np.ndarray, tmp_path: Path
) -> None:
    write_nifti(tmp_path / "scan.nii", noisy.astype(np.float32))
    with pytest.raises(UsageError, match=words):
        adl_monai.denoise(tmp_path / "scan.nii" if path else noisy, **options)


def test_a_3d_model_for_a_2d_array_is_refused_in_pythons_terms(noisy: np.ndarray) -> None:
    with pytest.raises(ModelError, match=r"2D \(shape \(16, 16\)\).*adl3d is 3D.*model='adl2d'"):
        adl_monai.denoise(noisy[0], "adl3d")


def test_values_beyond_float32_are_refused(noisy: np.ndarray, identity_model: Model) -> None:
    for large in (noisy * 1e39, np.where(noisy > noisy.max() - 1e-9, 1e39, noisy), np.full((16, 16, 16), 1e39)):
        with pytest.raises(UsageError, match=r"beyond 3\.4e"):
            adl_monai.denoise(large, identity_model(3))


@pytest.mark.parametrize(
    ("kept", "coarsest"),
    [
        (lambda noisy: noisy + 1e4, 2**-9),
        (lambda noisy: noisy * 1e30, 1e30 * 2**-15),
        (lambda noisy: (noisy * 1e16).astype(np.uint64), 2**39),
        (lambda noisy: noisy.astype(np.int32) + 10_000_000, 1),  # as coarse as the integers that came in
        (lambda noisy: noisy.astype(np.float32).astype(np.float64) + 0, 2**-16),
        (lambda noisy: np.full_like(noisy, 0.1), 1e-8),
    ],
)
def test_what_float32_holds_comes_back(
    kept: Callable[[np.ndarray], np.ndarray], coarsest: float, noisy: np.ndarray, identity_model: Model
) -> None:
    image = kept(noisy)
    denoised = adl_monai.denoise(image, identity_model(3), precision="fp32")
    assert denoised.dtype == np.float32
    np.testing.assert_allclose(denoised.astype(np.float64), image.astype(np.float64), atol=coarsest, rtol=0)
