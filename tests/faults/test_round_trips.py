"""Whatever the geometry, type and scale: what goes through the NIfTI doors, or an idle denoiser, comes back."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adl_monai.bundle import load_denoiser
from adl_monai.data.io import read_volume, write_volume
from adl_monai.stages.arrays import denoise
from adl_monai.stages.infer import infer
from tests.data.conftest import build_nifti

RELAXED = settings(
    deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FEW = settings(RELAXED, max_examples=12)
EXACT = 2**22  # codes up to here, with their scale, survive float32
TYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Turned, flipped, sheared and anisotropic, exact in float32."""
    angles = [draw(st.floats(-3.1, 3.1)) for _ in range(3)]
    axes = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        one, two = [other for other in range(3) if other != axis]
        turn[one, one] = turn[two, two] = np.cos(angle)
        turn[one, two], turn[two, one] = -np.sin(angle), np.sin(angle)
        axes = axes @ turn
    spacing = [draw(st.sampled_from([-1, 1])) * draw(st.floats(0.05, 12)) for _ in range(3)]
    shear = np.eye(3)
    shear[0, 2] = draw(st.sampled_from([0.0, 0.0, 0.25]))
    affine = np.eye(4)
    affine[:3, :3] = axes @ shear * spacing
    affine[:3, 3] = [draw(st.floats(-500, 500)) for _ in range(3)]
    return affine.astype(np.float32).astype(np.float64)


@st.composite
def voxels(draw: st.DrawFn, types: list[str] = TYPES) -> np.ndarray:
    dims = draw(st.integers(2, 3))
    shape = tuple(draw(st.integers(1, 11)) for _ in range(dims))
    dtype, rng = np.dtype(draw(st.sampled_from(types))), np.random.default_rng(draw(st.integers(0, 2**32)))
    if dtype.kind == "f":
        scale = 10.0 ** draw(st.integers(-8, 8))
        return (rng.normal(0, scale, shape)).astype(np.float32).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(max(limits.min, -EXACT), min(limits.max, EXACT), shape, endpoint=True).astype(dtype)


SCALES = st.one_of(
    st.just((1.0, 0.0)),
    st.just((0.0, np.nan)),
    st.tuples(st.sampled_from([0.5, -2.0, 0.0078125, 4096.0]), st.sampled_from([0.0, -1024.0, 8.0])),
)


@RELAXED
@given(stored=voxels(), affine=affines(), scale=SCALES, order=st.sampled_from("<>"), version=st.sampled_from([1, 2]),
       codes=st.sampled_from([(1, 0), (2, 0), (4, 2), (3, 3)]), suffix=st.sampled_from([".nii", ".nii.gz"]),
       units=st.sampled_from([0, 2 + 8, 3, 1]))  # fmt: skip
def test_every_byte_returns_through_the_nifti_doors(
    tmp_path: Path, stored: np.ndarray, affine: np.ndarray, scale: tuple[float, float], suffix: str, **options: Any
) -> None:
    slope, inter = scale if scale[0] else (1.0, 0.0)
    if stored.dtype.kind == "f":
        scale, slope, inter = (1.0, 0.0), 1.0, 0.0
    elif abs(inter / slope) + EXACT >= 2**23:
        scale, slope, inter = (slope, 0.0), slope, 0.0
    path = build_nifti(tmp_path / f"scan{suffix}", stored, affine, scale=scale, **options)
    volume = read_volume(path)
    assert np.array_equal(volume.array, (stored.astype(np.float64) * slope + inter).astype(np.float32))
    factor = {1: 1e3, 3: 1e-3}.get(options["units"], 1.0)
    np.testing.assert_allclose(volume.affine[:3], affine[:3] * factor, rtol=1e-6)
    copy = tmp_path / f"copy{suffix}"
    assert write_volume(copy, volume.array, like=path, affine=volume.affine) == 0
    whole, again = path.read_bytes(), copy.read_bytes()
    if suffix == ".nii.gz":
        whole, again = gzip.decompress(whole), gzip.decompress(again)
    assert again == whole


@RELAXED
@given(stored=voxels(["float32"]), affine=affines())
def test_a_new_file_has_the_place_and_the_values(tmp_path: Path, stored: np.ndarray, affine: np.ndarray) -> None:
    path = tmp_path / "new.nii.gz"
    write_volume(path, stored, like=None, affine=affine)
    again = read_volume(path)
    assert np.array_equal(again.array, stored)
    np.testing.assert_allclose(again.affine, affine, rtol=1e-6, atol=1e-9)


@cache
def idle(model: Path) -> Any:
    return load_denoiser(model, precision="fp32")


@FEW
@given(stored=voxels(["int8", "uint8", "int16", "uint16"]), affine=affines(), order=st.sampled_from("<>"))
def test_a_denoiser_of_no_strength_returns_every_byte(
    tmp_path: Path, stored: np.ndarray, affine: np.ndarray, order: str
) -> None:
    path = build_nifti(tmp_path / "scan.nii", stored, affine, order=order, scale=(0.5, -8.0), codes=(4, 0))
    (result,) = infer([path], tmp_path / "out.nii", strength=0.0, precision="fp32", overwrite=True)
    assert result.clipped == 0
    assert (tmp_path / "out.nii").read_bytes() == path.read_bytes()


@FEW
@given(stored=voxels(["float32"]))
def test_an_idle_network_returns_floats_to_their_last_digits(
    identity_model: Any, tmp_path: Path, stored: np.ndarray
) -> None:
    model = tmp_path / f"identity_{stored.ndim}d"
    model = model if model.exists() else identity_model(stored.ndim)
    returned = denoise(stored, idle(model))
    scale = np.abs(stored).max()
    np.testing.assert_allclose(returned, stored, rtol=0, atol=4e-6 * scale)


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64"])
def test_full_range_codes_return_to_float32s_digits(tmp_path: Path, dtype: str, caplog: Any) -> None:
    limits = np.iinfo(dtype)
    stored = np.linspace(float(limits.min) * 0.9, float(limits.max) * 0.9, 60).reshape(3, 4, 5).astype(dtype)
    path = build_nifti(tmp_path / "scan.nii", stored)
    volume = read_volume(path)
    write_volume(tmp_path / "copy.nii", volume.array, like=path, affine=volume.affine)
    again = read_volume(tmp_path / "copy.nii")
    assert again.dtype == volume.dtype
    assert np.array_equal(again.array, volume.array)
    assert "the last digits are lost" in caplog.text
