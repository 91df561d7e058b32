"""A scan goes in, its copy of the same geometry, intensities and format comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from PIL import Image
from pydicom.data import get_testdata_file

import adl_monai
from adl_monai.cli import cli
from adl_monai.errors import AdlError, ModelError, OutOfMemoryError, OutputError, ScanFileError, UsageError
from adl_monai.stages.evaluate import evaluate
from adl_monai.stages.infer import infer

Model = Callable[..., Path]
OBLIQUE = np.array([[0.0, -1.4, 0.3, 12.0], [0.9, 0.1, 0.2, -7.0], [-0.1, 0.2, 2.8, 3.5], [0.0, 0.0, 0.0, 1.0]])


def write_nifti(path: Path, stored: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
    image = nib.Nifti1Image(stored, affine)
    image.header.set_sform(affine, code=2)
    image.header.set_qform(np.diag([0.9, 1.4, 2.8, 1.0]), code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(0.5, -20)
    nib.save(image, path)
    return path


def stored_values(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj.get_unscaled())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_an_odd_oblique_volume_comes_back_exact(
    tmp_path: Path, identity_model: Model, rng: np.random.Generator, suffix: str
) -> None:
    stored = rng.integers(-2000, 3000, (37, 61, 23)).astype(np.int16)
    source = write_nifti(tmp_path / f"scan{suffix}", stored)
    (result,) = infer([source], tmp_path / "out", model=identity_model(3), precision="fp32")
    assert result.output == tmp_path / "out" / f"scan_denoised{suffix}"
    before, after = nib.load(source), nib.load(result.output)
    np.testing.assert_array_equal(stored_values(result.output), stored)
    assert before.header.binaryblock == after.header.binaryblock
    assert after.get_data_dtype() == np.int16
    assert result.clipped == 0


def test_a_real_model_changes_voxels_but_not_geometry(
    tmp_path: Path, identity_model: Model, rng: np.random.Generator
) -> None:
    source = write_nifti(tmp_path / "scan.nii.gz", rng.integers(0, 1000, (37, 61, 23)).astype(np.uint16))
    (result,) = infer(source, tmp_path / "out.nii.gz", model=identity_model(3, 0.3))
    before, after = nib.load(source), nib.load(result.output)
    assert after.shape == before.shape
    np.testing.assert_array_equal(after.affine, before.affine)
    assert (stored_values(result.output) != stored_values(source)).mean() > 0.5


def test_strength_blends_towards_the_input(tmp_path: Path, identity_model: Model, rng: np.random.Generator) -> None:
    source = tmp_path / "scan.nii"
    noisy = rng.normal(100, 10, (20, 20, 20)).astype(np.float32)
    nib.save(nib.Nifti1Image(noisy, np.eye(4)), source)
    model = identity_model(3, 0.3)

    def run(strength: float) -> np.ndarray:
        (result,) = infer([source], tmp_path / f"s{strength}.nii", model=model, strength=strength, precision="fp32")
        return nib.load(result.output).get_fdata()

    none, half, full = run(0), run(0.5), run(1)
    np.testing.assert_allclose(none, noisy, atol=1e-4)
    np.testing.assert_allclose(half, (noisy + full) / 2, atol=1e-3)
    assert np.abs(full - noisy).max() > 0.1


def test_float32_output_keeps_fractions(tmp_path: Path, identity_model: Model, rng: np.random.Generator) -> None:
    source = write_nifti(tmp_path / "scan.nii", rng.integers(0, 1000, (16, 16, 16)).astype(np.int16))
    (result,) = infer([source], tmp_path / "f.nii", model=identity_model(3, 0.3), dtype="float32")
    after = nib.load(result.output)
    assert after.get_data_dtype() == np.float32
    assert np.abs(after.get_fdata() - np.rint(after.get_fdata())).max() > 0


def test_a_scan_scaled_and_shifted_gives_the_same_relative_result(
    tmp_path: Path, identity_model: Model, rng: np.random.Generator
) -> None:
    model = identity_model(3, 0.3)
    noisy = rng.normal(0.5, 0.2, (24, 24, 24)).astype(np.float32)
    plain = adl_monai.denoise(noisy, model, precision="fp32")
    scaled = adl_monai.denoise(noisy * 1000 + 500, model, precision="fp32")
    np.testing.assert_allclose((scaled - 500) / 1000, plain, atol=2e-4)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_itk_formats_keep_their_geometry(
    tmp_path: Path, identity_model: Model, rng: np.random.Generator, suffix: str
) -> None:
    image = sitk.GetImageFromArray(rng.integers(0, 500, (9, 21, 30)).astype(np.int16))
    image.SetSpacing((0.7, 0.8, 3.3))
    image.SetOrigin((-11.0, 5.0, 2.0))
    image.SetDirection((0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    source = tmp_path / f"scan{suffix}"
    sitk.WriteImage(image, str(source))
    (result,) = infer([source], tmp_path / "out", model=identity_model(3), precision="fp32")
    after = sitk.ReadImage(str(result.output))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(after), sitk.GetArrayFromImage(image))
    assert after.GetSpacing() == image.GetSpacing()
    assert after.GetOrigin() == image.GetOrigin()
    assert after.GetDirection() == image.GetDirection()


@pytest.mark.parametrize(("suffix", "dtype"), [(".png", np.uint8), (".png", np.uint16), (".tif", np.float32)])
def test_2d_images_with_a_2d_model(
    tmp_path: Path, identity_model: Model, rng: np.random.Generator, suffix: str, dtype: type
) -> None:
    pixels = rng.integers(0, 255, (37, 61)).astype(dtype)
    source = tmp_path / f"image{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(source))
    (result,) = infer([source], tmp_path / "out", model=identity_model(2), precision="fp32")
    after = sitk.GetArrayFromImage(sitk.ReadImage(str(result.output)))
    assert after.dtype == dtype
    np.testing.assert_allclose(after, pixels, atol=0 if dtype != np.float32 else 1e-4)


def test_a_2d_model_on_a_volume_runs_slice_wise(
    tmp_path: Path, identity_model: Model, rng: np.random.Generator
) -> None:
    model = identity_model(2, 0.3)
    noisy = rng.normal(100, 10, (24, 17, 5)).astype(np.float32)
    source = tmp_path / "v.nii"
    nib.save(nib.Nifti1Image(noisy, np.eye(4)), source)
    (result,) = infer([source], tmp_path / "out", model=model, precision="fp32")
    after = nib.load(result.output).get_fdata()
    assert after.shape == noisy.shape
    flipped = adl_monai.denoise(noisy[:, :, ::-1].copy(), model, precision="fp32")[:, :, ::-1]
    np.testing.assert_allclose(after, flipped, atol=1e-3)


def test_a_3d_model_refuses_a_2d_image(tmp_path: Path, identity_model: Model) -> None:
    source = tmp_path / "image.png"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 8), np.uint8) + np.arange(8, dtype=np.uint8)), str(source))
    with pytest.raises(ModelError, match="pass a 2D model"):
        infer([source], tmp_path / "out", model=identity_model(3))


def test_a_dicom_series_can_become_nifti_of_the_same_voxels(tmp_path: Path, identity_model: Model) -> None:
    folder = Path(get_testdata_file("dicomdirtests/98892001/CT5N/2062")).parent
    (result,) = infer([folder], tmp_path / "out.nii.gz", model=identity_model(3), precision="fp32")
    assert result.output.name == "out.nii.gz"
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    expected = reader.Execute()
    after = sitk.ReadImage(str(result.output))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(after), sitk.GetArrayFromImage(expected))
    np.testing.assert_allclose(after.GetSpacing(), expected.GetSpacing(), rtol=1e-5)
    np.testing.assert_allclose(after.GetOrigin(), expected.GetOrigin(), rtol=1e-5, atol=1e-4)


def test_the_api_equals_the_command(tmp_path: Path, identity_model: Model, rng: np.random.Generator) -> None:
    model = identity_model(3, 0.3)
    source = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(rng.normal(300, 40, (25, 18, 33)).astype(np.float32), OBLIQUE), source)
    (result,) = infer([source], tmp_path / "out", model=model)
    volume = adl_monai.denoise(source, model)
    np.testing.assert_array_equal(volume.array, nib.load(result.output).get_fdata(dtype=np.float32))
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-6)


def test_a_constant_image_comes_back_unchanged(tmp_path: Path, identity_model: Model) -> None:
    source = tmp_path / "flat.nii"
    nib.save(nib.Nifti1Image(np.full((16, 16, 16), 42, np.int16), np.eye(4)), source)
    (result,) = infer([source], tmp_path / "out", model=identity_model(3, 0.3))
    assert (stored_values(result.output) == 42).all()
    assert (adl_monai.denoise(np.full((16, 16), 7.0), identity_model(2, 0.3)) == 7).all()


def test_a_bad_scan_does_not_stop_the_others(tmp_path: Path, identity_model: Model, rng: np.random.Generator) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "c"):
        write_nifti(folder / f"{name}.nii.gz", rng.integers(0, 100, (16, 16, 16)).astype(np.int16))
    (folder / "b.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:-40])
    with pytest.raises(ScanFileError, match=r"1 of 3 scans failed") as caught:
        infer([folder], tmp_path / "out", model=identity_model(3))
    (note,) = caught.value.__notes__
    assert note.startswith(f"{folder / 'b.nii.gz'}: ")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_denoised.nii.gz", "c_denoised.nii.gz"]


def test_a_manifest_as_input(tmp_path: Path, identity_model: Model, rng: np.random.Generator) -> None:
    write_nifti(tmp_path / "a.nii", rng.integers(0, 100, (16, 16, 16)).astype(np.int16))
    (tmp_path / "m.json").write_text(json.dumps({"training": [], "test": [{"image": "a.nii"}]}))
    (result,) = infer([tmp_path / "m.json"], tmp_path / "out", model=identity_model(3))
    assert result.output.name == "a_denoised.nii"


class TestRefusals:
    """Each before anything is computed, and nothing is left behind."""

    @pytest.fixture
    def scan(self, tmp_path: Path, rng: np.random.Generator) -> Path:
        return write_nifti(tmp_path / "scan.nii.gz", rng.integers(0, 100, (16, 16, 16)).astype(np.int16))

    def check(self, error: type[AdlError], match: str, *arguments: Any, **named: Any) -> None:
        with pytest.raises(error, match=match):
            infer(*arguments, **named)

    def test_existing_output(self, scan: Path, tmp_path: Path, identity_model: Model) -> None:
        target = tmp_path / "o.nii.gz"
        target.write_bytes(b"precious")
        self.check(OutputError, "--overwrite", [scan], target, model=identity_model(3))
        assert target.read_bytes() == b"precious"
        infer([scan], target, model=identity_model(3), overwrite=True)
        assert nib.load(target).shape == (16, 16, 16)

    def test_output_is_the_input(self, scan: Path, tmp_path: Path, identity_model: Model) -> None:
        before = scan.read_bytes()
        link = tmp_path / "link.nii.gz"
        link.symlink_to(scan)
        for target in (scan, link):
            self.check(OutputError, "input", [scan], target, model=identity_model(3), overwrite=True)
        assert scan.read_bytes() == before

    def test_same_names(self, scan: Path, tmp_path: Path, identity_model: Model) -> None:
        other = tmp_path / "sub" / scan.name
        other.parent.mkdir()
        other.write_bytes(scan.read_bytes())
        self.check(UsageError, "same name", [scan, other], tmp_path / "out", model=identity_model(3))

    def test_missing_input_and_empty_folder(self, tmp_path: Path, identity_model: Model) -> None:
        self.check(UsageError, "does not exist", [tmp_path / "no.nii"], model=identity_model(3))
        (tmp_path / "empty").mkdir()
        self.check(UsageError, "no scans", [tmp_path / "empty"], model=identity_model(3))

    def test_no_model(self, scan: Path, tmp_path: Path) -> None:
        self.check(ModelError, "configs/inference.json", [scan], tmp_path / "out", model=tmp_path / "nothing")

    def test_nan_voxels(self, tmp_path: Path, identity_model: Model) -> None:
        voxels = np.ones((8, 8, 8), np.float32)
        voxels[1, 2, 3] = np.nan
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "nan.nii")
        self.check(ScanFileError, "1 ", [tmp_path / "nan.nii"], tmp_path / "out", model=identity_model(3))
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_strangers_bundle_is_never_run_as_code(
    tmp_path: Path, identity_model: Model, rng: np.random.Generator
) -> None:
    source = write_nifti(tmp_path / "scan.nii", rng.integers(0, 100, (16, 16, 16)).astype(np.int16))
    model = identity_model(3)
    config_path = model / "configs" / "inference.json"
    config = json.loads(config_path.read_text())
    proof = tmp_path / "ran"
    code = f"$__import__('pathlib').Path({str(proof)!r}).touch()"

    config["initialize"] = [code]
    config["preprocessing"] = code
    config_path.write_text(json.dumps(config))
    infer([source], tmp_path / "out", model=model)
    assert not proof.exists(), "an expression outside the values we read was run"

    for bad in ({"filters": code}, {"filters": [4, 4, 4, {"_target_": "os.system"}]}, {"norm": "@device"}):
        broken = {**config, "network_def": {**config["network_def"], **bad}}
        config_path.write_text(json.dumps(broken))
        with pytest.raises(ModelError, match="plain values"):
            infer([source], tmp_path / "out2", model=model)
    config_path.write_text(json.dumps({**config, "network_def": {"_target_": "os.system", "command": "true"}}))
    with pytest.raises(ModelError, match="network_def"):
        infer([source], tmp_path / "out2", model=model)
    assert not proof.exists()


def test_the_command_line(tmp_path: Path, identity_model: Model, rng: np.random.Generator) -> None:
    source = write_nifti(tmp_path / "scan.nii.gz", rng.integers(0, 100, (16, 16, 16)).astype(np.int16))
    arguments = ["infer", str(source), "--model", str(identity_model(3)), "--preview"]
    with CliRunner().isolated_filesystem(tmp_path) as here:
        result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert result.exit_code == 0
        assert sorted(p.name for p in Path(here).iterdir()) == ["scan_denoised.nii.gz", "scan_denoised_preview.png"]
    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(Path(here) / "scan_denoised_preview.png")))
    assert picture.shape == (256, 3 * 256)  # enlarged 16 times


def test_a_folder_of_two_series_asks_which(tmp_path: Path, identity_model: Model) -> None:
    files = sorted(Path(get_testdata_file("dicomdirtests/98892001/CT5N/2062")).parent.iterdir())
    folder = tmp_path / "both"
    folder.mkdir()
    for index, source in enumerate(files):
        for number in (41, 42):
            image = pydicom.dcmread(source)
            image.SeriesNumber = number
            image.SeriesInstanceUID += f".{number}"
            image.SOPInstanceUID += f".{number}"
            image.save_as(folder / f"{number}_{index}.dcm")
    with pytest.raises(UsageError, match="--series"):
        infer([folder], tmp_path / "out", model=identity_model(3))
    (result,) = infer([folder], tmp_path / "out", model=identity_model(3), series="42")
    assert sorted(path.name for path in result.output.iterdir()) == [f"IM_000{index}.dcm" for index in range(1, 6)]
    assert {pydicom.dcmread(path).SeriesNumber for path in result.output.iterdir()} == {1042}


def test_options_are_never_evaluated(tmp_path: Path, identity_model: Model) -> None:
    proof = tmp_path / "ran"
    code = f"$__import__('pathlib').Path({str(proof)!r}).touch()"
    source = write_nifti(tmp_path / "scan.nii", np.arange(4096).reshape(16, 16, 16).astype(np.int16))
    for option in ("series", "precision", "device"):
        with pytest.raises(UsageError, match=option):
            infer([source], tmp_path / "out", model=identity_model(3), **{option: code})
    with pytest.raises(UsageError, match="noise"):
        evaluate(tmp_path / "m.json", tmp_path / "metrics.json", model=identity_model(3), noise=code)
    assert not proof.exists()


def test_too_little_memory_is_said(tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ...")

    source = write_nifti(tmp_path / "scan.nii", np.arange(4096).reshape(16, 16, 16).astype(np.int16))
    monkeypatch.setattr("adl_monai.inferers.TiledInferer.__call__", allocate)
    with pytest.raises(OutOfMemoryError, match="not enough memory"):
        infer([source], tmp_path / "out", model=identity_model(3))
    assert not list((tmp_path / "out").iterdir())


def test_a_preview_of_a_dicom_image_is_the_way_up_that_viewers_show(
    tmp_path: Path, identity_model: Callable[..., Path]
) -> None:
    source = Path(get_testdata_file("CT_small.dcm"))
    infer([source], tmp_path / "ct.nii.gz", model=identity_model(2), preview=True)
    with Image.open(tmp_path / "ct_preview.png") as picture:
        shown = np.asarray(picture, float)
    pixels = pydicom.dcmread(source).pixel_array.astype(float)
    enlarged = shown.shape[0] // pixels.shape[0]
    left = shown[::enlarged, : pixels.shape[1] * enlarged : enlarged]
    assert np.corrcoef(left.ravel(), np.clip(pixels, *np.percentile(pixels, (0.5, 99.5))).ravel())[0, 1] > 0.99
