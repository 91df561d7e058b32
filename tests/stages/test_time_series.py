"""Each volume of a 4D NIfTI file comes out as it would alone, in a file like the source."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adl_monai.data.nifti.file import peek_header, read_nifti
from adl_monai.data.nifti.stream import open_nifti_source
from adl_monai.errors import OutputError, ScanFileError
from adl_monai.inferers import TiledInferer
from adl_monai.stages.infer import infer
from tests.data.conftest import build_nifti, oblique_affine
from tests.streaming import stand_in, voxels

Model = Callable[..., Path]

SHAPE = (13, 9, 7, 4)


def series_of(dtype: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Volumes of different levels, as those of different diffusion weights are."""
    levels = np.array([1, 0.5, 0.25, 0.125])
    return (voxels("int16", shape) * levels).astype(dtype)


def stored_in(path: Path) -> np.ndarray:
    """The voxels of a file as they are stored."""
    header = peek_header(path, time_series=True)
    with open_nifti_source(path, path.with_name("unused"), time_series=True) as source:
        box = tuple(slice(0, length) for length in source.shape)
        return source.voxels.read(box).reshape(header.shape, order="F")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "dtype, header, options",
    [
        ("int16", {"codes": (4, 2), "units": 2 + 8, "fields": {"toffset": 1.5}}, {}),
        ("int16", {"scale": (0.37, -1024.0), "order": ">", "extension": b"bvals"}, {"strength": 0.4}),
        ("float32", {"version": 2}, {}),
        ("uint8", {}, {"dtype": "float32"}),
    ],
    ids=str,
)
def test_each_volume_comes_out_as_alone(
    tmp_path: Path,
    identity_model: Model,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    dtype: str,
    header: dict[str, Any],
    options: dict[str, Any],
) -> None:
    stand_in(monkeypatch)
    model = identity_model(3)
    stored = series_of(dtype)
    source = build_nifti(tmp_path / f"dwi{suffix}", stored, oblique_affine(), **header)
    (result,) = infer([source], tmp_path / f"out{suffix}", model=model, time_series=True, **options)
    found = stored_in(result.output)
    clipped = 0
    for index in range(SHAPE[3]):
        alone = build_nifti(tmp_path / f"{index}{suffix}", stored[..., index], oblique_affine(), **header)
        (one,) = infer([alone], tmp_path / f"out_{index}{suffix}", model=model, **options)
        clipped += one.clipped
        np.testing.assert_array_equal(found[..., index], stored_in(one.output))
    assert not np.array_equal(found, stored)
    assert result.clipped == clipped
    if "dtype" not in options:
        assert peek_header(result.output, time_series=True).raw == peek_header(source, time_series=True).raw


def test_a_series_of_single_slices(tmp_path: Path, identity_model: Model) -> None:
    source = build_nifti(tmp_path / "cine.nii.gz", series_of("int16", (13, 9, 1, 4)))
    (result,) = infer([source], tmp_path / "out.nii.gz", model=identity_model(2), time_series=True)
    np.testing.assert_array_equal(stored_in(result.output), stored_in(source))


def test_no_more_than_one_volume_is_seen_at_a_time(
    tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def note(self: TiledInferer, inputs: Any, network: Any) -> Any:
        seen.append(tuple(inputs.shape))
        return inputs

    monkeypatch.setattr(TiledInferer, "__call__", note)
    source = build_nifti(tmp_path / "fmri.nii", series_of("int16"))
    infer([source], tmp_path / "out.nii", model=identity_model(3), time_series=True)
    assert seen == [(1, 1, *SHAPE[:3])] * SHAPE[3]


def test_constant_volumes_stay_and_are_counted(
    tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in(monkeypatch)
    stored = series_of("int16")
    stored[..., 1] = 7
    source = build_nifti(tmp_path / "fmri.nii", stored)
    with caplog.at_level(logging.WARNING):
        (result,) = infer([source], tmp_path / "out.nii", model=identity_model(3), time_series=True)
    found = stored_in(result.output)
    np.testing.assert_array_equal(found[..., 1], 7)
    assert not np.array_equal(found[..., 2], stored[..., 2])
    assert "1 of 4 volumes are constant" in caplog.text


def test_the_picture_is_that_of_the_middle_volume(
    tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    stored, pictures = series_of("int16"), []
    for name, volumes in (("all", stored), ("third", stored[..., 2])):
        source = build_nifti(tmp_path / f"{name}.nii", volumes, oblique_affine())
        infer([source], tmp_path / f"{name}_out.nii", model=identity_model(3), time_series=True, preview=True)
        pictures.append(np.asarray(Image.open(tmp_path / f"{name}_out_preview.png")))
    assert pictures[0].std() > 0
    np.testing.assert_array_equal(*pictures)


def test_series_and_volumes_of_one_folder(tmp_path: Path, identity_model: Model) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    build_nifti(folder / "a.nii", series_of("int16"))
    build_nifti(folder / "b.nii", voxels("int16"))
    build_nifti(folder / "c.nii", voxels("int16"))
    results = infer([folder], tmp_path / "out", model=identity_model(3), time_series=True, preview=True)
    assert [result.output.name for result in results] == ["a_denoised.nii", "b_denoised.nii", "c_denoised.nii"]
    assert stored_in(results[0].output).shape == SHAPE
    np.testing.assert_array_equal(read_nifti(results[1].output).array, voxels("int16"))
    with Image.open(tmp_path / "out" / "a_denoised_preview.png") as picture:
        assert picture.width > picture.height  # three planes side by side


def test_a_damaged_last_volume_is_refused_before_the_first_is_denoised(
    tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: TiledInferer, inputs: Any, network: Any) -> Any:
        raise AssertionError("the network ran before the refusal")

    monkeypatch.setattr(TiledInferer, "__call__", forbidden)
    model = identity_model(3)
    stored = series_of("float32")
    stored[3, 4, 5, 3] = np.nan
    source = build_nifti(tmp_path / "dwi.nii.gz", stored)
    with pytest.raises(ScanFileError, match="1 of 3276 voxels are NaN"):
        infer([source], tmp_path / "out" / "o.nii.gz", model=model, time_series=True)
    cut = tmp_path / "cut.nii"
    cut.write_bytes(build_nifti(tmp_path / "whole.nii", series_of("int16")).read_bytes()[:-10])
    with pytest.raises(ScanFileError, match="cut short"):
        infer([cut], tmp_path / "out" / "o.nii", model=model, time_series=True)
    assert not list((tmp_path / "out").iterdir())


def test_a_series_becomes_nifti_alone(tmp_path: Path, identity_model: Model) -> None:
    source = build_nifti(tmp_path / "dwi.nii", series_of("int16"))
    with pytest.raises(OutputError, match="written as NIfTI alone"):
        infer([source], tmp_path / "out.mha", model=identity_model(3), time_series=True)


@pytest.mark.parametrize("shape", [(4, 5, 6, 1, 3), (4, 5, 6, 2, 3)])
def test_more_axes_are_refused(tmp_path: Path, identity_model: Model, shape: tuple[int, ...]) -> None:
    source = build_nifti(tmp_path / "warp.nii", voxels("int16", shape))
    with pytest.raises(ScanFileError, match="5D with shape"):
        infer([source], tmp_path / "out.nii", model=identity_model(3), time_series=True)


def test_without_the_option_the_way_out_is_told(tmp_path: Path, identity_model: Model) -> None:
    source = build_nifti(tmp_path / "dwi.nii", series_of("int16"))
    with pytest.raises(ScanFileError, match="each of the 4 by itself with adl-monai infer --time-series"):
        infer([source], tmp_path / "out.nii", model=identity_model(3))
