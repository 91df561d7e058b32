import errno
import logging
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.data import get_testdata_file

from adl_monai.data import io as io_module
from adl_monai.data.formats import OUTPUT_SUFFIXES, find_scans, is_scan, scan_format, scan_stem, scan_suffix
from adl_monai.data.io import read_volume, write_volume
from adl_monai.data.output import check_output
from adl_monai.data.volume import Volume
from adl_monai.errors import OutputError, ScanFileError, UsageError

from .conftest import SHAPE, build_dicom, build_nifti, build_series, oblique_affine

EVEN = [0.0, 2.5, 5.0, 7.5]
RIGID = np.array([[-0.4, 0.45, 0, -100], [-0.3, -0.6, 0, 42.5], [0, 0, -2.5, 7], [0, 0, 0, 1]])


def stored_voxels(dtype: str = "int16", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 250, shape).astype(dtype)


def make_source(folder: Path, name: str) -> Path:
    """A scan of the kind that ``name`` says."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    if name == "series":
        build_series(path, EVEN)
        return path
    if name.endswith(".dcm"):
        return build_dicom(path, stored_voxels(shape=(6, 5)))
    if ".nii" in name:
        return build_nifti(path, stored_voxels(), oblique_affine(), codes=(3, 1), scale=(0.5, -10), order=">")
    if name.endswith((".png", ".bmp", ".jpg")):
        Image.fromarray(stored_voxels("uint8", (6, 5))).save(path)
        return path
    image = sitk.GetImageFromArray(stored_voxels("uint16", (4, 6, 5)), isVector=False)
    image.SetSpacing((0.5, 0.75, 2.5))
    image.SetOrigin((1, 2, 3))
    sitk.WriteImage(image, str(path))
    return path


def write_like(path: Path, source: Path, **options: Any) -> tuple[Volume, int]:
    volume = read_volume(source)
    return volume, write_volume(path, volume.array, like=source, affine=volume.affine, **options)


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.png", "a.tif", "a.dcm"])
def test_a_pipe_is_refused_as_one(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match="not a regular file"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.png", "a.tif"])
def test_identity_in_the_own_format(tmp_path: Path, name: str) -> None:
    source, out = make_source(tmp_path / "in", name), tmp_path / "out"
    out.mkdir()
    volume, clipped = write_like(out / name, source)
    again = read_volume(out / name)
    assert clipped == 0
    assert np.array_equal(again.array, volume.array)
    assert np.allclose(again.affine, volume.affine, rtol=1e-6)
    assert (again.dtype, again.format) == (volume.dtype, volume.format)
    assert left_behind(out) == [name]


@pytest.mark.parametrize("pair", [("a.nii", "b.nii.gz"), ("a.nii.gz", "b.nii"), ("a.nii", "B.NII.GZ")])
def test_nii_and_nii_gz_are_one_format(tmp_path: Path, pair: tuple[str, str]) -> None:
    source = make_source(tmp_path, pair[0])
    write_like(tmp_path / pair[1], source)
    before, after = nib.load(source), nib.load(tmp_path / pair[1])
    assert before.header.binaryblock == after.header.binaryblock
    assert before.dataobj.get_unscaled().tobytes() == after.dataobj.get_unscaled().tobytes()
    assert (before.dataobj.slope, before.dataobj.inter) == (after.dataobj.slope, after.dataobj.inter)


@pytest.mark.parametrize("source_name, target, dtype", [
    ("series", "b.nii.gz", "int16"), ("series", "b.mha", "int16"), ("a.dcm", "b.nii", "int16"),
    ("a.nii", "b.mha", "float32"), ("a.mha", "b.nii.gz", "uint16"), ("a.mha", "b.nrrd", "uint16"),
    ("a.jpg", "b.png", "uint8"), ("a.bmp", "b.png", "uint8"), ("a.png", "b.nii", "uint8"),
])  # fmt: skip
def test_other_formats_keep_values_shape_and_place(
    tmp_path: Path, source_name: str, target: str, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_source(tmp_path, source_name)
    volume, clipped = write_like(tmp_path / target, source)
    again = read_volume(tmp_path / target)
    assert clipped == 0
    assert np.array_equal(again.array, volume.array)
    assert np.allclose(again.affine, volume.affine, rtol=1e-6, atol=1e-5)
    assert again.dtype == np.dtype(dtype)
    assert "no position or orientation" not in caplog.text


def test_fractions_of_a_pet_series_survive(tmp_path: Path) -> None:
    build_series(tmp_path / "series", EVEN, RescaleSlope=0.37, RescaleIntercept=0)
    volume, _ = write_like(tmp_path / "b.nii.gz", tmp_path / "series")
    assert np.array_equal(read_volume(tmp_path / "b.nii.gz").array, volume.array)
    assert read_volume(tmp_path / "b.nii.gz").dtype == np.float32


def test_a_chosen_series_is_written_like_itself(tmp_path: Path) -> None:
    build_series(tmp_path / "series", EVEN)
    build_dicom(tmp_path / "series" / "x.dcm", np.zeros((3, 3), np.int16), SeriesInstanceUID="1.9", SeriesNumber=2)
    volume = read_volume(tmp_path / "series", "7")
    with pytest.raises(UsageError, match="several series"):
        write_volume(tmp_path / "b.nii", volume.array, like=tmp_path / "series", affine=volume.affine)
    write_volume(tmp_path / "b.nii", volume.array, like=tmp_path / "series", affine=volume.affine, series="7")
    assert np.array_equal(read_volume(tmp_path / "b.nii").array, volume.array)


def test_no_source_at_all(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    write_volume(tmp_path / "b.nii.gz", values, like=None, affine=RIGID)
    again = read_volume(tmp_path / "b.nii.gz")
    assert np.array_equal(again.array, values)
    assert np.allclose(again.affine, RIGID, atol=1e-5)
    assert again.dtype == np.float32


def test_types_and_saturation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = make_source(tmp_path, "a.mha")
    volume = read_volume(source)
    noisy = volume.array + np.float32(0.3)
    noisy[0, 0, :2] = [-5, 1e6]
    with caplog.at_level(logging.WARNING, "adl_monai"):
        assert write_volume(tmp_path / "b.mha", noisy, like=source, affine=volume.affine) == 2
    assert "b.mha: 2 voxels do not fit uint16" in caplog.text
    assert read_volume(tmp_path / "b.mha").array[0, 0, :2].tolist() == [0, 65535]
    for dtype in ("float32", np.dtype(np.float32)):
        assert write_volume(tmp_path / "c.mha", noisy, like=source, affine=volume.affine, dtype=dtype) == 0
        assert np.array_equal(read_volume(tmp_path / "c.mha").array, noisy)


def test_a_moved_array_is_refused(tmp_path: Path) -> None:
    for name in ("a.nii", "a.mha"):
        source = make_source(tmp_path, name)
        volume = read_volume(source)
        flipped = volume.affine @ np.diag([-1.0, 1, 1, 1])
        with pytest.raises(OutputError, match="lies elsewhere"):
            write_volume(tmp_path / f"b{name[1:]}", volume.array, like=source, affine=flipped)
        assert not (tmp_path / f"b{name[1:]}").exists()
        assert write_volume(tmp_path / f"c{name[1:]}", volume.array, like=source, affine=volume.affine + 1e-6) == 0


def test_non_finite_results_leave_nothing(tmp_path: Path) -> None:
    source = make_source(tmp_path, "a.nii")
    broken = np.full(SHAPE, np.nan, np.float32)
    with pytest.raises(OutputError, match="NaN"):
        write_volume(tmp_path / "b.nii", broken, like=source, affine=read_volume(source).affine)
    assert left_behind(tmp_path) == ["a.nii"]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.tif"])
@pytest.mark.parametrize("how", ["quota", "fsync", "replace", "interrupt"])
def test_a_failed_write_leaves_the_folder_as_it_was(
    tmp_path: Path, name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = make_source(tmp_path / "in", name), tmp_path / "out"
    out.mkdir()
    target = out / name
    target.write_bytes(b"the old file")
    volume = read_volume(source)
    noise = np.random.default_rng(0).integers(0, 100, volume.array.shape).astype(np.float32)

    def fail(*arguments: Any) -> None:
        if how == "interrupt":
            raise KeyboardInterrupt
        raise OSError(errno.ENOSPC, "No space left on device")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if how == "quota":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    else:
        monkeypatch.setattr(*((Path, "replace") if how == "replace" else (os, "fsync")), fail)
    try:
        with pytest.raises(KeyboardInterrupt if how == "interrupt" else OutputError):
            write_volume(target, noise, like=source, affine=volume.affine)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        monkeypatch.undo()
    assert left_behind(out) == [name]
    assert target.read_bytes() == b"the old file"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux' /dev/full")
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path, "a.nii")
    volume, whole = read_volume(source), Path.open

    def full(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        return open("/dev/full", mode) if mode == "wb" else whole(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match="No space left"):
        write_volume(tmp_path / "b.nii", volume.array, like=source, affine=volume.affine)
    assert left_behind(tmp_path) == ["a.nii"]


def test_what_the_disk_did_not_keep_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path, "a.nii")
    volume, sync = read_volume(source), os.fsync

    def rot(position: int, content: bytes) -> Callable[[int], None]:
        def damage(descriptor: int) -> None:
            os.pwrite(descriptor, content, position)
            sync(descriptor)

        return damage

    faults = [(1000, b"\xff\xfe", "voxels"), (284, b"\x41\x41", "affine"), (344, b"bad", "cannot be read back")]
    for position, content, word in faults:
        monkeypatch.setattr(os, "fsync", rot(position, content))
        with pytest.raises(OutputError, match=word):
            write_volume(tmp_path / "b.nii", volume.array, like=source, affine=volume.affine)
    assert left_behind(tmp_path) == ["a.nii"]


def test_two_writers_of_one_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path, "a.nii")
    volume, compare = read_volume(source), io_module._compare

    def meanwhile(*arguments: Any) -> None:
        compare(*arguments)
        (tmp_path / "b.nii").write_bytes(b"the other's")

    monkeypatch.setattr(io_module, "_compare", meanwhile)
    with pytest.raises(OutputError, match="another process"):
        write_volume(tmp_path / "b.nii", volume.array, like=source, affine=volume.affine, overwrite=False)
    assert (tmp_path / "b.nii").read_bytes() == b"the other's"
    monkeypatch.setattr(os, "link", None)  # not reached: the file is seen first
    with pytest.raises(OutputError, match="exists"):
        write_volume(tmp_path / "b.nii", volume.array, like=source, affine=volume.affine, overwrite=False)
    assert left_behind(tmp_path) == ["a.nii", "b.nii"]


def test_without_links_in_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    source = make_source(tmp_path, "a.nii")
    monkeypatch.setattr(os, "link", unsupported)
    volume, _ = write_like(tmp_path / "b.nii", source, overwrite=False)
    assert np.array_equal(read_volume(tmp_path / "b.nii").array, volume.array)
    assert left_behind(tmp_path) == ["a.nii", "b.nii"]


def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    source = make_source(tmp_path, "a.nii")
    (tmp_path / "plain").write_bytes(b"")
    write_like(tmp_path / "b.nii", source)
    assert (tmp_path / "b.nii").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_check_output(tmp_path: Path) -> None:
    source = make_source(tmp_path, "a.nii")
    os.link(source, tmp_path / "hard.nii")
    (tmp_path / "soft.nii").symlink_to(source)
    (tmp_path / "dangling.nii").symlink_to(tmp_path / "none")
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "old.nii").write_bytes(b"old")
    cases: list[tuple[Path, bool, str]] = [
        (source, True, "is the input"),
        (tmp_path / "folder.nii" / ".." / "a.nii", True, "is the input"),
        (tmp_path / "hard.nii", True, "is the input"),
        (tmp_path / "soft.nii", True, "is the input"),
        (tmp_path / "old.nii", False, "exists"),
        (tmp_path / "dangling.nii", False, "exists"),
        (tmp_path / "folder.nii", True, "is a folder"),
        (tmp_path / "no" / "b.nii", True, "does not exist"),
        (tmp_path / "b.dcm", True, "cannot write this format"),
        (tmp_path / "b.jpg", True, "cannot write this format"),
        (tmp_path / "b.mhd", True, "cannot write this format"),
        (tmp_path / "b", True, "cannot write this format"),
    ]
    for path, overwrite, word in cases:
        with pytest.raises(OutputError, match=word):
            check_output(path, source, overwrite)
    check_output(tmp_path / "old.nii", source, overwrite=True)
    check_output(tmp_path / "b.nii", source)
    with pytest.raises(OutputError, match="is the input"):
        write_like(tmp_path / "hard.nii", source)
    assert read_volume(source).array.shape == SHAPE


def test_read_only_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    with pytest.raises(OutputError, match="not writable"):
        check_output(tmp_path / "b.nii")


@pytest.mark.parametrize("name, suffix, stem, kind", [
    ("sub-01.run.nii.gz", ".nii.gz", "sub-01.run", "nifti"), ("A.NII.GZ", ".NII.GZ", "A", "nifti"),
    ("a.Nii", ".Nii", "a", "nifti"), ("雪.mha", ".mha", "雪", "mha"), ("a.mhd", ".mhd", "a", "mha"),
    ("a.TIFF", ".TIFF", "a", "tiff"), ("a.tif", ".tif", "a", "tiff"), ("a.jpeg", ".jpeg", "a", "jpeg"),
    ("a.IMA", ".IMA", "a", "dicom"), ("1.2.840.113619", "", "1.2.840.113619", ""), ("a.gz", "", "a.gz", ""),
    ("a.hdr", "", "a.hdr", ""), ("nii", "", "nii", ""),
])  # fmt: skip
def test_names(name: str, suffix: str, stem: str, kind: str) -> None:
    assert scan_suffix(Path("folder") / name) == suffix
    assert scan_stem(Path("folder") / name) == stem
    assert scan_format(Path("folder") / name) == kind


def test_every_output_suffix_can_be_read(tmp_path: Path) -> None:
    for suffix in OUTPUT_SUFFIXES:
        path = tmp_path / f"a{suffix}"
        write_volume(path, np.ones((5, 6), np.float32), like=None, affine=np.diag([-1.0, -1, 1, 1]), dtype="uint8")
        assert read_volume(path).array.shape == (5, 6)
        assert is_scan(path)


def test_find_scans(tmp_path: Path) -> None:
    for name in ("b/sub.1.nii.gz", "a.NII", "c/deep/x.mha", "notes.txt", "pair.hdr", "pair.img", "c/.hidden.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    build_series(tmp_path / "ct" / "series 1", EVEN)
    paths = build_series(tmp_path / "ct" / "series 2", EVEN)
    for path in paths:
        path.rename(path.with_suffix(""))  # recognised by their prefix
    (tmp_path / "ct" / "series 2" / "screenshot.png").write_bytes(b"x")
    shutil.copy(tmp_path / "ct" / "series 1" / "000.dcm", tmp_path / "ct" / "DICOMDIR")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "a.nii").write_bytes(b"x")
    found = [str(path.relative_to(tmp_path)) for path in find_scans(tmp_path)]
    assert found == [
        "a.NII", "b/sub.1.nii.gz", "c/deep/x.mha", "ct/series 1", "ct/series 2", "ct/series 2/screenshot.png",
    ]  # fmt: skip
    assert find_scans(tmp_path / "ct" / "series 1") == [tmp_path / "ct" / "series 1"]
    assert [is_scan(path) for path in (tmp_path, tmp_path / "ct" / "series 2", tmp_path / "none.nii")] == [0, 1, 0]


def test_find_scans_opens_one_slice_of_a_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network drive takes milliseconds for each of a hundred thousand slices."""
    (tmp_path / "ct").mkdir()
    for number in range(20):
        (tmp_path / "ct" / f"IM{number}").write_bytes(b"x")
    opened = []

    def first_bytes(path: Path) -> bool:
        opened.append(path)
        return True

    monkeypatch.setattr("adl_monai.data.formats.is_dicom_file", first_bytes)
    assert find_scans(tmp_path / "ct") == [tmp_path / "ct"]
    assert len(opened) == 1


@pytest.mark.parametrize("name", ["test-SR.dcm", "rtplan.dcm", "rtstruct.dcm", "reportsi.dcm", "DICOMDIR"])
def test_objects_without_pixels_are_no_scans(tmp_path: Path, name: str) -> None:
    objects, mixed = tmp_path / "objects", tmp_path / "mixed"
    objects.mkdir()
    for number in range(3):
        shutil.copy(str(get_testdata_file(name, download=False)), objects / f"{number}{Path(name).suffix}")
    assert find_scans(tmp_path) == []
    assert not is_scan(objects)
    build_series(mixed, EVEN)
    for number in range(3):
        shutil.copy(str(get_testdata_file(name, download=False)), mixed / f"000{number}{Path(name).suffix}")
    build_series(objects / "P1" / "CT", EVEN)
    assert find_scans(tmp_path) == [mixed, objects / "P1" / "CT"]


def test_a_folder_of_a_damaged_image_is_still_a_scan(tmp_path: Path) -> None:
    """Left out, nobody would hear of it."""
    path = build_series(tmp_path / "ct", EVEN)[0]
    for other in (tmp_path / "ct").glob("*"):
        if other != path:
            other.unlink()
    whole = path.read_bytes()
    for damaged in (whole[:200], whole[:1000], whole[:128] + b"DICM" + b"\0" * 500, b"", b"no DICOM"):
        path.write_bytes(damaged)
        assert find_scans(tmp_path) == [tmp_path / "ct"]


def test_read_volume_dispatch(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        read_volume(tmp_path / "none.nii")
    with pytest.raises(UsageError, match="no DICOM image"):
        read_volume(tmp_path)
    for name, word in (("a.txt", "not a known scan"), ("a.hdr", "pairs")):
        (tmp_path / name).write_text("text")
        with pytest.raises(ScanFileError, match=word):
            read_volume(tmp_path / name)
    bare = build_dicom(tmp_path / "1.2.3", stored_voxels(shape=(6, 5)))
    assert read_volume(str(bare)).format == "dicom"
    assert read_volume(make_source(tmp_path, "a.nii")).format == "nifti"
    assert read_volume(make_source(tmp_path, "a.tif")).format == "tiff"
