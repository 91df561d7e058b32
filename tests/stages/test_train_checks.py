"""Options and scans that cannot train are refused in words, before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file

from adl_monai.errors import UsageError
from adl_monai.stages.train import train
from tests.conftest import TINY, TINY_2D


@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        ("patch_size", [15, 15, 15], r"patch_size is \[15, 15, 15\]; expected multiples of 8, such as \[16, 16, 16\]"),
        ("patch_size", [16, 16], r"patch_size is \[16, 16\]; expected 3 numbers"),
        ("patch_size", 16, "patch_size is 16; expected 3 numbers"),
        ("patch_size", [16.5, 16, 16], "expected whole numbers"),
        ("patch_size", [0, 16, 16], "expected whole numbers of at least 1"),
        ("learning_rate", "nan", "learning_rate is 'nan'; expected a number, such as 0.002"),
        ("learning_rate", float("nan"), "learning_rate is nan; expected a number"),
        ("learning_rate", float("inf"), "learning_rate is inf; expected a number"),
        ("seed", -1, r"seed is -1; expected a whole number from 0"),
        ("seed", 1.5, "seed is 1.5; expected a whole number"),
        ("seed", "abc", "seed is 'abc'; expected a number"),
        ("max_epochs", 1.5, "max_epochs is 1.5; expected a whole number"),
        ("intensity_percentiles", [50, 40], r"intensity_percentiles is \[50, 40\]; expected two numbers that rise"),
        ("intensity_range", [3071, -1024], r"intensity_range is \[3071, -1024\]; expected two numbers that rise"),
        ("intensity_range", 255, "intensity_range is 255; expected two numbers that rise, in the unit of the scans"),
        ("cache_rate", 2, "cache_rate is 2; expected a share from 0 to 1"),
        ("patches_per_epoch", 3, "patches_per_epoch is 3 and batch_size 4"),
        ("deterministic", "maybe", "deterministic is 'maybe'; expected True or False"),
        ("network_def#spatial_dims", 2, "a 3D model is to be trained; use --dims"),
    ],
)
def test_values_are_checked_before_the_folder_is_made(
    manifest: Path, tmp_path: Path, name: str, value: object, answer: str
) -> None:
    with pytest.raises(UsageError, match=answer):
        train(manifest, tmp_path / "run", overrides={**TINY, name: value})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        # Deep in the chain of causes: a component's transform, an expression, and what only the first batch shows.
        ("patch_size", "$[15] * 3", r"train#trainer.run\(\) refused its values: shape \(15, 15, 15\) is not divisible"),
        ("intensity_percentiles", "$[50, 40]", "RobustNormalized refused its values: percentiles .50, 40. given"),
        ("learning_rate", "$'nan'", "the expression @learning_rate / 3 refused its values: unsupported operand"),
        ("seed", "$-1", "Degraded refused its values: expected non-negative"),
        ("loss", 3, r"train#trainer.run\(\) refused its values: .int. object has no attribute"),
    ],
)
def test_values_that_are_refused_deep_inside(
    manifest: Path, tmp_path: Path, name: str, value: object, answer: str
) -> None:
    with pytest.raises(UsageError, match=f"{answer}.* Given were .*{name}="):
        train(manifest, tmp_path / "run", overrides={**TINY, name: value})
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_parts_of_what_has_none(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="seed#name cannot be set, for seed is 0 in the bundle's configs; set seed"):
        train(manifest, tmp_path / "run", overrides={**TINY, "seed#name": 1})
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun does
    with pytest.raises(UsageError, match=r"device#name cannot be set, .*leave --device out: each process has its own"):
        train(manifest, tmp_path / "run", overrides={**TINY, "device#name": "cpu"})
    assert not (tmp_path / "run").exists()


def test_an_error_after_the_first_epoch_is_no_options_fault(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adl_monai.engines import ADLTrainer

    start = ADLTrainer.start_epoch

    def fail(self: ADLTrainer) -> None:
        start(self)
        if self.state.epoch == 2:
            raise ValueError("a fault of the program")

    monkeypatch.setattr(ADLTrainer, "start_epoch", fail)
    with pytest.raises(RuntimeError, match="Failed to evaluate"):
        train(manifest, tmp_path / "run", overrides=TINY)


def test_2d_patches_are_slices(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"training": [{"synthetic": {"shape": [24, 24]}}]}))
    for size, answer in (([16, 16, 16], r"expected \[16, 16, 1\]"), ([20, 16, 1], r"such as \[24, 16, 1\]")):
        with pytest.raises(UsageError, match=answer):
            train(path, tmp_path / "run", spatial_dims=2, overrides={**TINY_2D, "patch_size": size})


def flat_scans(folder: Path) -> list[str]:
    picture = np.random.default_rng(0).integers(0, 4000, (40, 33)).astype(np.uint16)
    for suffix in ("png", "tif", "mha"):
        sitk.WriteImage(sitk.GetImageFromArray(picture), str(folder / f"picture.{suffix}"))
    nib.save(nib.Nifti1Image(picture, np.eye(4)), folder / "picture.nii.gz")
    (folder / "series").mkdir()
    for name in ("mr.dcm", "series/mr.dcm"):
        shutil.copy(get_testdata_file("MR_small.dcm"), folder / name)
    return ["picture.png", "picture.tif", "picture.mha", "picture.nii.gz", "mr.dcm", "series"]


def test_2d_scans_for_a_3d_model_are_refused_with_the_way_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names, path = flat_scans(tmp_path), tmp_path / "m.json"
    entries: list[dict[str, object]] = [{"image": name} for name in names]
    entries += [{"synthetic": {"shape": [32, 24]}}]
    for entry in entries:
        path.write_text(json.dumps({"training": [entry]}))
        with pytest.raises(UsageError, match=r"1 of 1 scans are 2D, and a 3D model .*; pass --dims 2 to train a 2D"):
            train(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # Among volumes, in either split; all are named.
    path.write_text(
        json.dumps(
            {
                "training": [*entries, {"synthetic": {"shape": [24, 24, 1], "seed": 1}}],
                "validation": [{"synthetic": {"shape": [24, 24], "seed": 2}}],
            }
        )
    )
    with pytest.raises(UsageError, match="8 of 9 scans are 2D") as refusal:
        train(path, tmp_path / "run", overrides=TINY)
    for name in names:
        assert str(tmp_path / name) in str(refusal.value)
    assert "slices of the volumes too" in str(refusal.value)
    assert capfd.readouterr().err == ""
    # What --dims 2 then does with such a mixture.
    result = train(path, tmp_path / "run", spatial_dims=2, overrides={**TINY_2D, "max_epochs": 1})
    assert result.epochs == 1
