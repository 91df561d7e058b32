from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImage,
    LoadImaged,
    Orientationd,
    SaveImaged,
    Spacingd,
)

from adl_monai.data.io import read_volume
from adl_monai.data.monai_io import SaveImageLiked, StrictLoadImaged, VolumeReader, default_output_path
from adl_monai.data.synthetic import read_synthetic
from adl_monai.errors import OutputError, ScanFileError, UsageError

from .conftest import SHAPE, build_dicom, build_nifti, build_series, oblique_affine

RIGID = np.array([[-0.4, 0.45, 0, -100], [-0.3, -0.6, 0, 42.5], [0, 0, -2.5, 7], [0, 0, 0, 1]])


def volume_file(folder: Path, name: str = "scan.nii.gz", shape: tuple[int, ...] = SHAPE, **options: Any) -> Path:
    stored = np.random.default_rng(5).integers(-900, 900, shape).astype(np.int16)
    return build_nifti(folder / name, stored, **{"affine": oblique_affine(), "codes": (3, 1), **options})


@pytest.mark.parametrize("reader", [VolumeReader, VolumeReader(), "adl_monai.data.VolumeReader"])
def test_metadata_for_monai(tmp_path: Path, reader: Any) -> None:
    path = volume_file(tmp_path)
    image = LoadImage(reader)(path)
    volume = read_volume(path)
    assert isinstance(image, MetaTensor)
    assert image.dtype == torch.float32
    assert np.array_equal(image.numpy(), volume.array)
    assert np.array_equal(image.affine.numpy(), volume.affine)
    assert image.affine.dtype == torch.float64
    assert image.meta["filename_or_obj"] == str(path)
    assert image.meta["stored_dtype"] == "<i2"
    assert image.meta["scan_format"] == "nifti"
    assert np.array_equal(image.meta["original_affine"], volume.affine)
    assert list(image.meta["spatial_shape"]) == list(SHAPE)


@pytest.mark.parametrize("shape", [(37, 61), (37, 61, 23)])
def test_loading_through_a_dataloader_and_saving_each_item(tmp_path: Path, shape: tuple[int, ...]) -> None:
    paths = [volume_file(tmp_path, f"{index}.nii.gz", shape) for index in range(3)]
    transform = Compose([StrictLoadImaged("image"), EnsureChannelFirstd("image")])
    loader = DataLoader(Dataset([{"image": str(path)} for path in paths], transform), batch_size=3)
    batch = next(iter(loader))
    assert batch["image"].shape == (3, 1, *shape)
    batch["pred"] = batch["image"] + 1
    save = SaveImageLiked("pred", output_dir=tmp_path / "out")
    for path, item in zip(paths, decollate_batch(batch), strict=True):
        assert item["image"].affine.shape == (4, 4)
        saved = save(item)
        source, result = read_volume(path), read_volume(Path(saved["pred_path"]))
        assert saved["pred_path"] == str(tmp_path / "out" / path.name.replace(".nii", "_denoised.nii"))
        assert saved["pred_clipped"] == 0
        assert np.array_equal(result.array, source.array + 1)
        assert np.array_equal(result.affine, source.affine)
        assert result.dtype == source.dtype


def test_a_refused_scan_is_not_read_by_another_reader(tmp_path: Path) -> None:
    """MONAI's own readers take this file without a word."""
    stored = np.ones((5, 6, 7), np.float32)
    stored[1, 2, 3] = np.nan
    path = build_nifti(tmp_path / "scan.nii", stored)
    assert torch.isnan(LoadImage()(path)).any()
    for load in (LoadImage(VolumeReader()), LoadImaged("image", VolumeReader), StrictLoadImaged("image")):
        with pytest.raises(ScanFileError, match="1 of 210 voxels are NaN"):
            load(path if isinstance(load, LoadImage) else {"image": path})


def test_strict_loading_has_no_second_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise ScanFileError("refused")

    path = volume_file(tmp_path, shape=(5, 6, 7))
    monkeypatch.setattr(VolumeReader, "read", fail)
    with pytest.raises(RuntimeError, match="refused"):
        StrictLoadImaged("image")({"image": path})


def test_a_name_of_no_known_format_is_refused_by_us(tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", np.zeros((5, 6)))
    with pytest.raises(ScanFileError, match="not a known scan"):
        StrictLoadImaged("image")({"image": tmp_path / "scan.npy"})
    reader = VolumeReader()
    assert not reader.verify_suffix(str(tmp_path / "scan.npy"))
    assert reader.verify_suffix(["a.nii.gz", Path("b.MHA"), "synthetic:seed=3"])
    with pytest.raises(UsageError, match="2 files"):
        reader.get_data(reader.read(["a.nii", "b.nii"]))


def test_series_are_chosen_read_and_saved(tmp_path: Path) -> None:
    folder = tmp_path / "CT 7"
    build_series(folder, [0.0, 2.5, 5.0])
    build_dicom(folder / "x.dcm", np.zeros((3, 3), np.int16), SeriesInstanceUID="1.9", SeriesNumber=2)
    transform = Compose([StrictLoadImaged("image", series="7", ensure_channel_first=True)])
    item = next(iter(DataLoader(Dataset([{"image": str(folder)}], transform), batch_size=1)))
    item = decollate_batch(item)[0]
    item["pred"] = item["image"]
    for ext, kind in ((None, "dicom"), (".nii.gz", "nifti")):
        saved = SaveImageLiked("pred", output_dir=tmp_path, output_ext=ext)(item)
        assert saved["pred_path"] == str(tmp_path / f"CT 7_denoised{ext or ''}")
        result, source = read_volume(saved["pred_path"]), read_volume(folder, "7")
        assert np.array_equal(result.array, source.array)
        assert np.allclose(result.affine, source.affine, atol=1e-6)
        assert (result.dtype, result.format) == (np.int16, kind)


def test_synthetic_volumes_are_generated_and_saved(tmp_path: Path) -> None:
    name = "synthetic:shape=9x8x7,seed=3"
    item = StrictLoadImaged("image", ensure_channel_first=True)({"image": name})
    assert np.array_equal(item["image"][0].numpy(), read_synthetic(name).array)
    assert item["image"].meta["filename_or_obj"] == name
    item["pred"] = item["image"] * 0.5
    saved = SaveImageLiked("pred", output_dir=tmp_path)(item)
    assert Path(saved["pred_path"]).name == "synthetic-shape-9x8x7-seed-3_denoised.nii.gz"
    assert np.array_equal(read_volume(saved["pred_path"]).array, item["pred"][0].numpy())


def test_spatial_transforms_must_be_undone(tmp_path: Path) -> None:
    path = volume_file(tmp_path, affine=RIGID)
    preprocessing = Compose(
        [
            StrictLoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", "RAS", labels=None),
            Spacingd("image", (0.5, 0.75, 2.5)),
        ]
    )
    item = preprocessing({"image": str(path)})
    item["pred"] = item["image"].clone()
    with pytest.raises(OutputError, match=r"does not fit|elsewhere"):
        SaveImageLiked("pred", output_dir=tmp_path / "out")(item)
    assert not list((tmp_path / "out").iterdir())
    item = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False)(item)
    saved = SaveImageLiked("pred", output_dir=tmp_path / "out", dtype="float32")(item)
    assert np.abs(read_volume(saved["pred_path"]).array - read_volume(path).array).max() < 1


@pytest.mark.parametrize("as_meta", [True, False])
def test_plain_tensors_and_half_precision(tmp_path: Path, as_meta: bool) -> None:
    item = StrictLoadImaged("image", ensure_channel_first=True)({"image": str(volume_file(tmp_path))})
    item["pred"] = (item["image"] if as_meta else item["image"].as_tensor()).to(torch.bfloat16).requires_grad_()
    saved = SaveImageLiked("pred", output_dir=tmp_path)(item)
    assert np.array_equal(read_volume(saved["pred_path"]).array, item["pred"].detach().float().numpy()[0])


def test_it_counts_as_what_saves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """MONAI Label leaves out what is a ``SaveImaged``; MONAI Deploy, what has SaveImage in its name."""
    save = SaveImageLiked("pred", output_dir=tmp_path / "out", allow_missing_keys=True)
    assert isinstance(save, SaveImaged)
    assert not (tmp_path / "out").exists()
    image = StrictLoadImaged("image", ensure_channel_first=True)({"image": str(volume_file(tmp_path))})
    assert save(image) == image
    with caplog.at_level("INFO", "adl_monai"):
        saved = save({**image, "pred": image["image"]})
    assert f"wrote {saved['pred_path']}" in caplog.text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scan_denoised.nii.gz"]


def test_outputs_can_be_named_and_are_guarded(tmp_path: Path) -> None:
    path = volume_file(tmp_path, shape=(5, 6, 7))
    item = StrictLoadImaged("image", ensure_channel_first=True)({"image": str(path)})
    item["pred"] = item["image"]
    item["output"] = str(tmp_path / "deep" / "er" / "named.nii")
    save = SaveImageLiked("pred")
    assert save(item)["pred_path"] == item["output"]
    before = Path(item["output"]).read_bytes()
    with pytest.raises(OutputError, match="exists"):
        save(item)
    assert Path(item["output"]).read_bytes() == before
    assert SaveImageLiked("pred", overwrite=True)(item)["pred_path"] == item["output"]
    item["output"] = str(path)
    with pytest.raises(OutputError, match="is the input"):
        SaveImageLiked("pred", overwrite=True)(item)
    (tmp_path / "file").write_text("x")
    item["output"] = str(tmp_path / "file" / "b.nii")
    with pytest.raises(OutputError, match="cannot be made"):
        save(item)
    item["output"], item["pred"] = "", torch.zeros(2, 5, 6, 7)
    with pytest.raises(ScanFileError, match="2 channels"):
        save(item)
    with pytest.raises(UsageError, match="filename_or_obj"):
        save({"image": torch.zeros(1, 5, 6, 7), "pred": torch.zeros(1, 5, 6, 7)})


@pytest.mark.parametrize("name, ext, expected", [
    ("a.nii", None, "a_denoised.nii"), ("A.NII.GZ", None, "A_denoised.NII.GZ"), ("a.b.mha", None, "a.b_denoised.mha"),
    ("a.mhd", None, "a_denoised.mha"), ("a.jpg", None, "a_denoised.png"), ("a.bmp", None, "a_denoised.png"),
    ("a.png", None, "a_denoised.png"), ("a.tif", None, "a_denoised.tif"), ("a.dcm", None, "a_denoised.dcm"),
    ("a.IMA", None, "a_denoised.dcm"),
    ("1.2.840.5", None, "1.2.840.5_denoised.nii.gz"),
    ("a.dcm", ".nii.gz", "a_denoised.nii.gz"), ("a.nii", ".mha", "a_denoised.mha"),
    ("synthetic:seed=3", None, "synthetic-seed-3_denoised.nii.gz"),
])  # fmt: skip
def test_default_output_path(name: str, ext: str | None, expected: str) -> None:
    source = name if ":" in name else Path("in") / name
    assert default_output_path(source, Path("out"), "denoised", ext) == Path("out") / expected


def test_default_output_path_of_folders_and_without_postfix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_series(tmp_path / "1.2.dcm", [0.0])
    assert default_output_path(tmp_path / "1.2.dcm", "out").name == "1.2.dcm_denoised"
    assert default_output_path(tmp_path / "1.2.dcm", "out", "denoised", ".nii.gz").name == "1.2.dcm_denoised.nii.gz"
    assert default_output_path(tmp_path / "a.nii", "out", "") == Path("out/a.nii")
    monkeypatch.chdir(tmp_path / "1.2.dcm")
    assert default_output_path(".", "out").name == "1.2.dcm_denoised"


def test_names_in_a_bundle_configuration(tmp_path: Path) -> None:
    path = volume_file(tmp_path)
    parser = ConfigParser(
        {
            "reader": {"_target_": "adl_monai.data.VolumeReader"},
            "load": {"_target_": "LoadImaged", "keys": "image", "reader": "@reader"},
            "strict": {"_target_": "adl_monai.data.StrictLoadImaged", "keys": "image"},
            "save": {"_target_": "adl_monai.data.SaveImageLiked", "keys": "pred", "output_dir": str(tmp_path)},
        }
    )
    first = parser.get_parsed_content("load")({"image": str(path)})["image"]
    second = parser.get_parsed_content("strict")({"image": str(path)})["image"]
    assert torch.equal(first, second)
    saved = parser.get_parsed_content("save")({"image": second, "pred": second[None]})
    assert np.array_equal(read_volume(saved["pred_path"]).array, second.numpy())
