"""What is no MRI keeps its counts, activities and Hounsfield units, and magnitude MRI loses its floor."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

import adl_monai
from adl_monai.bundle import Denoiser, load_denoiser, open_workflow
from adl_monai.cli import cli
from adl_monai.data.io import read_volume
from adl_monai.data.normalization import robust_range
from adl_monai.errors import UsageError
from adl_monai.stages.evaluate import evaluate
from adl_monai.stages.infer import infer
from tests.data.conftest import build_dicom
from tests.streaming import stand_in

Model = Callable[..., Path]
Floats = NDArray[np.float64]

SHAPE = (64, 64, 32)
X, Y, Z = np.meshgrid(*(np.arange(size) - (size - 1) / 2 for size in SHAPE), indexing="ij")
BODY = (X / 24) ** 2 + (Y / 20) ** 2 < 1
SPOT = (X - 8) ** 2 + Y**2 + Z**2 < 16
LUNGS = ((abs(X) - 13) / 9) ** 2 + (Y / 14) ** 2 < 1
INSIDE_LUNGS = ((abs(X) - 13) / 7) ** 2 + (Y / 12) ** 2 < 1


@pytest.fixture(scope="module")
def adl3d() -> Denoiser:
    return load_denoiser("adl3d", device="cpu")


def counts(rng: np.random.Generator, level: float) -> Floats:
    return rng.poisson(level * (BODY + 2.0 * SPOT)).astype(float)


def chest(rng: np.random.Generator) -> Floats:
    """Hounsfield units, clipped as scanners do: emphysema in both lungs."""
    truth = np.select([LUNGS, (X / 29) ** 2 + (Y / 24) ** 2 < 1], [-950.0, 40.0], -1000.0)
    return np.rint(np.clip(truth + rng.normal(0, 60, SHAPE), -1024, 3071))


def magnitude(rng: np.random.Generator, signal: float = 1.0) -> Floats:
    return np.asarray(abs(signal + rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE)))


def write_series(folder: Path, voxels: Floats, modality: str) -> Path:
    """Planes that each have a slope of their own, as those of PET do, with room for what a model makes of them."""
    for index in range(voxels.shape[2]):
        plane = voxels[:, :, index].T
        slope = float(f"{max(float(plane.max()), 1) / 8000:.10g}")
        elements = {"RescaleSlope": slope, "RescaleIntercept": 0, "Modality": modality, "InstanceNumber": index + 1}
        place = {"ImagePositionPatient": [0, 0, 2 * index], "PixelSpacing": [2, 2]}
        build_dicom(folder / f"{index}.dcm", np.rint(plane / slope).astype(np.int16), **elements, **place)
    return folder


@pytest.mark.parametrize("level", [1, 1.5, 2, 3])
def test_counts_are_kept(adl3d: Denoiser, rng: np.random.Generator, level: float) -> None:
    noisy = counts(rng, level)
    kept = adl_monai.denoise(noisy, adl3d, noise_floor="keep")
    assert abs(kept.sum() / noisy.sum() - 1) < 0.01
    body = BODY & ((X / 18) ** 2 + (Y / 14) ** 2 < 1) & ((X - 8) ** 2 + Y**2 + Z**2 > 100)
    assert abs(kept[body].mean() / noisy[body].mean() - 1) < 0.05
    assert kept[body].std() < 0.3 * noisy[body].std()


@pytest.mark.parametrize("level", [1.5, 2])
def test_counts_that_fill_the_image_are_kept(adl3d: Denoiser, rng: np.random.Generator, level: float) -> None:
    """Nothing around them tells the model that they are counts: it takes all of them for the floor of an MRI."""
    noisy = rng.poisson(level, SHAPE).astype(float)
    kept = adl_monai.denoise(noisy, adl3d, noise_floor="keep")
    assert abs(kept.sum() / noisy.sum() - 1) < 0.01
    assert kept.std() < 0.3 * noisy.std()
    assert adl_monai.denoise(noisy, adl3d).sum() < 0.5 * noisy.sum(), "else there would be nothing to keep"


def test_slices_of_counts_are_kept(rng: np.random.Generator) -> None:
    noisy = counts(rng, 1)
    kept = adl_monai.denoise(noisy, load_denoiser("adl2d", device="cpu"), noise_floor="keep")
    np.testing.assert_allclose(kept.sum((0, 1)), noisy.sum((0, 1)), rtol=0.01)


def test_lungs_keep_their_units(adl3d: Denoiser, rng: np.random.Generator) -> None:
    noisy = chest(rng)
    kept = adl_monai.denoise(noisy, adl3d, noise_floor="keep")
    assert abs(kept[INSIDE_LUNGS].mean() - noisy[INSIDE_LUNGS].mean()) < 3
    assert kept[INSIDE_LUNGS].std() < 10
    tissue = ~LUNGS & ((X / 27) ** 2 + (Y / 22) ** 2 < 1)
    assert abs(kept[tissue].mean() - noisy[tissue].mean()) < 1, "what the lungs were given stays in the lungs"


def test_little_noise_comes_back(adl3d: Denoiser, rng: np.random.Generator) -> None:
    noisy = np.where(BODY, 20.0, 0.0) + rng.normal(size=SHAPE)
    inside = (X / 18) ** 2 + (Y / 14) ** 2 < 1
    left = [adl_monai.denoise(noisy, adl3d, noise_floor=choice)[inside].std() for choice in ("remove", "keep")]
    assert left[1] < 1.25 * left[0] < 0.08


def test_a_pet_series_keeps_its_activity(tmp_path: Path, rng: np.random.Generator) -> None:
    """By its modality alone, from the command to the derived series."""
    noisy = 1000 * counts(rng, 1.5)
    source = write_series(tmp_path / "pet", noisy, "PT")
    ran = CliRunner().invoke(cli, ["infer", str(source), "-o", str(tmp_path / "out"), "--device", "cpu"])
    assert ran.exit_code == 0, ran.output
    assert abs(read_volume(tmp_path / "out").array.sum() / noisy.sum() - 1) < 0.01


@pytest.mark.parametrize("modality, same_as", [("CT", "keep"), ("MR", "remove")])
def test_the_modality_chooses(
    tmp_path: Path, identity_model: Model, rng: np.random.Generator, modality: str, same_as: str
) -> None:
    source = write_series(tmp_path / "in", 100 * counts(rng, 1.5), modality)
    options = {"model": identity_model(3, 0.3), "device": "cpu", "precision": "fp32"}
    found = {}
    for choice in ("auto", "keep", "remove"):
        infer([source], tmp_path / choice, noise_floor=choice, **options)
        found[choice] = read_volume(tmp_path / choice).array
        in_memory = adl_monai.denoise(source, noise_floor=choice, **options).array
        np.testing.assert_allclose(found[choice], in_memory, atol=0.2)
    assert not np.array_equal(found["keep"], found["remove"])
    assert np.array_equal(found["auto"], found[same_as])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_what_is_measured_is_what_infer_makes(
    tmp_path: Path, identity_model: Model, rng: np.random.Generator, modality: str, dims: int
) -> None:
    clean = 150 * (BODY + 2.0 * SPOT)
    label = write_series(tmp_path / "clean", clean, modality)
    pair = {"image": str(write_series(tmp_path / "noisy", 100 * counts(rng, 1.5), modality)), "label": str(label)}
    (tmp_path / "m.json").write_text(json.dumps({"test": [pair]}))
    options = {"model": identity_model(dims, 0.3), "device": "cpu", "precision": "fp32"}
    noisy, truth = read_volume(tmp_path / "noisy"), read_volume(label).array
    scale = robust_range(torch.from_numpy(noisy.array.astype(np.float32)))[1]
    found = {}
    for choice in ("auto", "keep", "remove"):
        arguments = {**options, "noise_floor": choice}
        row = evaluate(tmp_path / "m.json", tmp_path / f"{choice}.json", **arguments)[0]
        error = ((adl_monai.denoise(noisy, **arguments).array - truth) ** 2).mean(dtype=float)
        assert row["psnr"] == pytest.approx(10 * np.log10(scale**2 / error), abs=0.01)
        assert json.loads((tmp_path / f"{choice}.json").read_text())["noise_floor"] == choice
        found[choice] = row["psnr"]
    assert abs(found["keep"] - found["remove"]) > 0.5
    assert found["auto"] == found["keep" if modality == "CT" else "remove"]


def test_measuring_warns_of_real_pairs_alone(
    tmp_path: Path, identity_model: Model, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    """Of noise that was added, who measures knows whether it lifts the mean."""
    paths = {name: str(tmp_path / f"{name}.nii") for name in ("noisy", "clean", "alone")}
    for path in paths.values():
        nib.save(nib.Nifti1Image(counts(rng, 1.5).astype(np.float32), np.eye(4)), path)
    cases = [{"image": paths["noisy"], "label": paths["clean"]}, {"image": paths["alone"]}]
    (tmp_path / "m.json").write_text(json.dumps({"test": cases}))
    with caplog.at_level(logging.WARNING):
        evaluate(tmp_path / "m.json", tmp_path / "metrics.json", model=identity_model(3, 0.3), noise="rician")
    said = [record.getMessage() for record in caplog.records if "the mean fell" in record.getMessage()]
    assert [Path(line.split(":")[0]).name for line in said] == ["noisy.nii"]
    caplog.clear()
    command = ["evaluate", str(tmp_path / "m.json"), "-o", str(tmp_path / "kept.json"), "--noise-floor", "keep"]
    assert CliRunner().invoke(cli, [*command, "--model", str(tmp_path / "identity_3d")]).exit_code == 0
    assert json.loads((tmp_path / "kept.json").read_text())["noise_floor"] == "keep"
    assert "the mean fell" not in caplog.text


def test_monai_runs_the_bundle_alike(tmp_path: Path, identity_model: Model, rng: np.random.Generator) -> None:
    model = identity_model(3, 0.3)
    source = write_series(tmp_path / "data" / "ct", 100 * counts(rng, 1.5), "CT")
    infer([source], tmp_path / "ours", model=model, precision="fp32", device="cpu")
    overrides = {"dataset_dir": str(source.parent), "output_dir": str(tmp_path / "theirs"), "device#name": "cpu"}
    workflow = open_workflow(model, ("inference",), "infer", {**overrides, "precision": "fp32"})
    workflow.initialize()
    workflow.run()
    theirs = read_volume(tmp_path / "theirs" / "ct_denoised").array
    np.testing.assert_array_equal(read_volume(tmp_path / "ours").array, theirs)


def test_half_the_strength_removes_half(adl3d: Denoiser, rng: np.random.Generator) -> None:
    """Means are kept before the blend, which leaves noise that would be taken for levels."""
    noisy = counts(rng, 3)
    whole, half = (adl_monai.denoise(noisy, adl3d, strength=s, noise_floor="keep") for s in (1.0, 0.5))
    np.testing.assert_allclose(half, (noisy + whole) / 2, atol=1e-3)


def test_strength_0_is_the_input(tmp_path: Path, identity_model: Model, rng: np.random.Generator) -> None:
    nib.save(nib.Nifti1Image(counts(rng, 1).astype(np.uint16), np.eye(4)), tmp_path / "scan.nii")
    (result,) = infer(
        [tmp_path / "scan.nii"], tmp_path / "out.nii", model=identity_model(3, 0.3), strength=0, noise_floor="keep"
    )
    np.testing.assert_array_equal(nib.load(result.output).get_fdata(), nib.load(tmp_path / "scan.nii").get_fdata())


def test_a_fall_of_the_mean_is_told_once(
    adl3d: Denoiser, rng: np.random.Generator, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    signal = np.where(BODY, 20.0, 10.0)
    for quiet in (signal + rng.normal(size=SHAPE), signal + 0.2 * magnitude(rng, 5)):
        adl_monai.denoise(quiet, adl3d)
    adl_monai.denoise(counts(rng, 1), adl3d, noise_floor="remove")
    adl_monai.denoise(counts(rng, 1), adl3d, noise_floor="keep")
    assert not caplog.records
    adl_monai.denoise(magnitude(rng), adl3d)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["the image"]
    caplog.clear()
    series = np.stack([magnitude(rng) for _ in range(3)], axis=-1).astype(np.float32)
    for name, voxels in (("scan", series[..., 0]), ("dwi", series)):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / f"{name}.nii")
    with caplog.at_level(logging.WARNING):
        infer(sorted(tmp_path.glob("*.nii")), tmp_path / "out", model="adl3d", device="cpu", time_series=True)
    said = [record.getMessage() for record in caplog.records if "the mean fell" in record.getMessage()]
    assert [Path(line.split(":")[0]).name for line in said] == ["dwi.nii", "scan.nii"]
    assert all("--noise-floor keep" in line for line in said)


def test_the_fall_of_a_time_series_is_that_of_all_its_volumes(
    tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr("tests.streaming.brighter", lambda values: values.mul(0.5))
    volume = np.arange(6 * 7 * 8, dtype=np.float32).reshape(6, 7, 8)  # of mean 167.5
    nib.save(nib.Nifti1Image(np.stack([volume, 3 * volume], axis=-1), np.eye(4)), tmp_path / "scan.nii")
    with caplog.at_level(logging.WARNING):
        infer([tmp_path / "scan.nii"], tmp_path / "out.nii", model=identity_model(3), time_series=True)
    assert "scan.nii: the mean fell from 335 to" in caplog.text


def test_a_time_series_is_kept_volume_by_volume(
    tmp_path: Path, identity_model: Model, rng: np.random.Generator
) -> None:
    voxels = np.stack([counts(rng, level) for level in (1, 4)], axis=-1).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "scan.nii")
    (result,) = infer(
        [tmp_path / "scan.nii"],
        tmp_path / "out.nii",
        model=identity_model(3, 0.3),
        time_series=True,
        noise_floor="keep",
    )
    kept = nib.load(result.output).get_fdata()
    assert not np.allclose(kept, voxels, atol=0.1)
    np.testing.assert_allclose(kept.sum((0, 1, 2)), voxels.sum((0, 1, 2), dtype=float), rtol=0.01)


def test_from_disk_to_disk_means_cannot_be_kept(
    tmp_path: Path, identity_model: Model, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    nib.save(nib.Nifti1Image(counts(rng, 1).astype(np.uint16), np.eye(4)), tmp_path / "scan.nii")
    arguments = {"model": identity_model(3), "max_memory": 0}
    with pytest.raises(UsageError, match=r"scan\.nii is too large .*--max-memory.*--noise-floor remove"):
        infer([tmp_path / "scan.nii"], tmp_path / "out.nii", noise_floor="keep", **arguments)
    assert not (tmp_path / "out.nii").exists()
    infer([tmp_path / "scan.nii"], tmp_path / "out.nii", noise_floor="remove", **arguments)
    assert (tmp_path / "out.nii").exists()


def test_another_choice_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'drop' is unknown; expected"):
        infer([tmp_path / "none.nii"], noise_floor="drop")
    with pytest.raises(UsageError, match="'drop' is unknown; expected"):
        adl_monai.denoise(np.zeros((8, 8)), noise_floor="drop")
    with pytest.raises(UsageError, match="'drop' is unknown; expected"):
        evaluate(tmp_path / "none.json", tmp_path / "metrics.json", noise_floor="drop")


@pytest.mark.parametrize("noise_floor", ["auto", "remove"])
def test_from_disk_to_disk_a_fall_is_told_too(
    tmp_path: Path,
    identity_model: Model,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    noise_floor: str,
) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr("tests.streaming.brighter", lambda values: values.mul(0.5))
    nib.save(nib.Nifti1Image(np.arange(6 * 7 * 8, dtype=np.float32).reshape(6, 7, 8), np.eye(4)), tmp_path / "scan.nii")
    model = identity_model(3)
    with caplog.at_level(logging.WARNING):
        infer([tmp_path / "scan.nii"], tmp_path / "out.nii", model=model, max_memory=0, noise_floor=noise_floor)
    assert ("scan.nii: the mean fell from 167.5 to" in caplog.text) is (noise_floor == "auto")
