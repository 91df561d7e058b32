"""Volumes of thick slices, and single slices, go to the 2D model slice by slice, if none was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

import adl_monai
from adl_monai.bundle import shipped_bundles
from adl_monai.cli import cli
from adl_monai.errors import UsageError
from adl_monai.stages.evaluate import evaluate
from adl_monai.stages.infer import infer
from adl_monai.stages.one_scan import DenoiserChoice
from adl_monai.stages.slices import fitting_axes


@pytest.mark.parametrize(
    "shape, spacing, axes",
    [
        ((64, 64), (1, 1), 2),
        ((64, 64, 1), (1, 1, 1), 2),
        ((64, 64, 20), None, 3),
        ((64, 64, 20), (1, 1, 1), 3),
        ((64, 64, 20), (0.9, 0.9, 4.4), 3),
        ((64, 64, 20), (0.9, 0.9, 5.0), 2),
        ((64, 64, 20), (0.45, 0.9, 2.0), 3),
        ((20, 64, 64), (5.0, 0.9, 0.9), 3),  # slices along another axis are not cut out
        ((1, 64, 64), (1, 1, 1), 3),
    ],
)
def test_which_model_fits(shape: tuple[int, ...], spacing: tuple[float, ...] | None, axes: int) -> None:
    assert fitting_axes(shape, spacing) == axes


def test_both_shipped_models_load_alike() -> None:
    """What one has loaded is handed to the other."""
    configs = [json.loads((root / "configs" / "inference.json").read_text()) for root in shipped_bundles().values()]
    first, second = (config["preprocessing"]["transforms"][0] for config in configs)
    assert first == second
    assert first["_target_"] == "adl_monai.data.StrictLoadImaged"


@pytest.mark.parametrize("in_memory", [True, False])
def test_thick_slices_are_denoised_one_by_one(
    tmp_path: Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """In memory and from disk to disk; each slice comes out as it would alone, but for the range that all share."""
    used: list[str] = []

    def fitting(self: DenoiserChoice, shape: tuple[int, ...], affine: np.ndarray) -> object:
        denoiser = original(self, shape, affine)
        used.append(denoiser.name)
        return denoiser

    original = DenoiserChoice.fitting
    monkeypatch.setattr(DenoiserChoice, "fitting", fitting)
    monkeypatch.setattr(DenoiserChoice, "fits", lambda *arguments: in_memory)
    voxels = rng.normal(500, 100, (24, 24, 4)).astype(np.int16)
    for name, spacing in (("thick", 5.0), ("thin", 1.0)):
        nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, spacing, 1.0])), tmp_path / f"{name}.nii")
        infer([tmp_path / f"{name}.nii"], tmp_path)
    assert set(used[: len(used) // 2]) == {"adl2d"}
    assert set(used[len(used) // 2 :]) == {"adl3d"}
    thick, thin = (nib.load(tmp_path / f"{name}_denoised.nii").get_fdata() for name in ("thick", "thin"))
    assert np.abs(thick - thin).max() > 1

    swapped = voxels[..., ::-1]
    nib.save(nib.Nifti1Image(swapped, np.diag([1.0, 1.0, 5.0, 1.0])), tmp_path / "swapped.nii")
    infer([tmp_path / "swapped.nii"], tmp_path)
    assert np.abs(nib.load(tmp_path / "swapped_denoised.nii").get_fdata()[..., ::-1] - thick).max() <= 1


def test_a_model_that_was_asked_for_is_taken(
    tmp_path: Path, identity_model: Callable[..., Path], rng: np.random.Generator
) -> None:
    choice = DenoiserChoice(identity_model(3))
    assert choice.fitting((24, 24, 4), np.diag([1.0, 1.0, 9.0, 1.0])).spatial_dims == 3
    assert choice.fitting((24, 24, 1), np.eye(4)).spatial_dims == 3


def test_a_scan_is_read_once(tmp_path: Path, rng: np.random.Generator, caplog: pytest.LogCaptureFixture) -> None:
    """A 2D image was read by the 3D model first, then by its own: each warning stood there twice."""
    image = nib.Nifti1Image(rng.normal(500, 100, (24, 24)).astype(np.int16), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(image, tmp_path / "plane.nii")
    infer([tmp_path / "plane.nii"], tmp_path)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == len(set(texts)) >= 1


def test_in_python_alike(tmp_path: Path, rng: np.random.Generator) -> None:
    voxels = rng.normal(500, 100, (24, 24, 4)).astype(np.float32)
    paths = []
    for name, spacing in (("thick", 5.0), ("thin", 1.0)):
        paths.append(tmp_path / f"{name}.nii")
        nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, spacing, 1.0])), paths[-1])
    thick, thin = (adl_monai.denoise(path).array for path in paths)
    assert np.array_equal(thick, adl_monai.denoise(voxels, "adl2d"))
    assert np.array_equal(thin, adl_monai.denoise(voxels))
    assert not np.array_equal(thick, thin)
    assert np.array_equal(adl_monai.denoise(voxels[..., :1]), adl_monai.denoise(voxels[..., :1], "adl2d"))


def test_evaluate_measures_what_infer_does(tmp_path: Path, rng: np.random.Generator) -> None:
    for name, spacing in (("thick", 5.0), ("thin", 1.0)):
        image = nib.Nifti1Image(rng.normal(500, 100, (24, 24, 4)).astype(np.float32), np.diag([1.0, 1.0, spacing, 1.0]))
        nib.save(image, tmp_path / f"{name}.nii")

    def used(*names: str) -> str:
        cases = [{"image": f"{name}.nii"} for name in names]
        (tmp_path / "m.json").write_text(json.dumps({"training": [], "validation": [], "test": cases}))
        evaluate(tmp_path / "m.json", tmp_path / "out.json", overwrite=True)
        return Path(json.loads((tmp_path / "out.json").read_text())["model"]).name

    assert used("thick") == "adl2d"
    assert used("thin") == "adl3d"
    with pytest.raises(UsageError, match="1 images are 2D or have thick slices"):
        used("thin", "thick")


def test_the_choice_for_thick_slices_is_told(tmp_path: Path) -> None:
    """In one line for the run, on stderr; not where there was no choice, or nobody wants to hear of it."""
    for name, distance in (("a", 6.0), ("b", 5.0), ("c", 1.0)):
        voxels = np.random.default_rng(0).normal(500, 50, (16, 16, 4)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, distance, 1])), tmp_path / f"{name}.nii")

    def said(*arguments: str) -> str:
        outcome = CliRunner().invoke(cli, [*arguments, "-o", str(tmp_path / "out"), "--overwrite"])
        assert outcome.exit_code == 0
        assert all(line.endswith("_denoised.nii") for line in outcome.stdout.splitlines())
        return outcome.stderr

    line = "with slices five or more pixels apart: adl2d, slice by slice (--model adl3d for the other)\n"
    many = [str(tmp_path / f"{name}.nii") for name in "abc"]
    assert said("infer", *many) == f"2 volumes {line}3 scans: 3 denoised, 0 skipped, 0 failed\n"
    assert said("infer", many[0]) == f"1 volume {line}"
    nib.save(nib.Nifti1Image(np.resize(voxels, (256, 256, 12)), np.diag([1, 1, 6, 1])), tmp_path / "large.nii")
    assert said("infer", str(tmp_path / "large.nii"), "--max-memory", "32M") == f"1 volume {line}"  # disk to disk
    assert said("infer", many[2]) == ""
    assert said("infer", many[0], "--model", "adl3d") == ""
    assert said("--quiet", "infer", *many) == ""
