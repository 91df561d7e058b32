import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from adl_monai.data.io import write_volume
from adl_monai.data.itk import file as itk
from adl_monai.data.itk.file import plan_itk, plan_itk_from_affine, read_itk
from adl_monai.errors import OutputError, ScanFileError, UsageError

DIRECTION = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, -1.0)


def random_voxels(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(2).uniform(0, 120, shape).astype(dtype)


def write_itk(path: Path, array: np.ndarray, like: Path, dtype: str = "same") -> int:
    return write_volume(path, array, like=like, affine=read_itk(like).affine, dtype=dtype)


def save(path: Path, stored: np.ndarray, compress: bool = False, geometry: bool = True) -> Path:
    """Write voxels indexed (x, y[, z]) with an oblique, anisotropic geometry."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(stored.T), isVector=False)
    if geometry:
        dims = stored.ndim
        image.SetSpacing((0.5, 0.75, 2.5)[:dims])
        image.SetOrigin((-10.5, 20.25, 3.0)[:dims])
        if dims == 3:
            image.SetDirection(DIRECTION)
    written = path.with_suffix(path.suffix.lower())
    sitk.WriteImage(image, str(written), useCompression=compress)
    return written.rename(path)


@pytest.mark.parametrize("shape", [(37, 61), (37, 61, 23), (37, 61, 1)])
@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
)
@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_medical_formats_round_trip(tmp_path: Path, suffix: str, dtype: str, shape: tuple[int, ...]) -> None:
    stored = random_voxels(dtype, shape)
    path = save(tmp_path / f"scan{suffix}", stored)
    volume = read_itk(path)
    assert np.array_equal(volume.array, stored.astype(np.float32))
    assert volume.dtype == np.dtype(dtype)
    image = sitk.ReadImage(str(path))
    corner = tuple(length - 1 for length in shape)
    ras = volume.affine @ [*corner, *[0] * (3 - len(shape)), 1]
    assert np.allclose((ras[:3] * [-1, -1, 1])[: len(shape)], image.TransformIndexToPhysicalPoint(corner))

    copy = tmp_path / f"copy{suffix}"
    assert write_itk(copy, volume.array, path) == 0
    again = sitk.ReadImage(str(copy))
    assert again.GetPixelID() == image.GetPixelID()
    assert again.GetSpacing() == image.GetSpacing()
    assert np.allclose(again.GetOrigin(), image.GetOrigin(), atol=1e-12)
    assert np.allclose(again.GetDirection(), image.GetDirection(), atol=1e-12)
    assert np.array_equal(sitk.GetArrayFromImage(again), sitk.GetArrayFromImage(image)) or dtype == "float64"


def test_a_name_in_capitals(tmp_path: Path) -> None:
    stored = random_voxels("int16", (5, 6, 7))
    path = save(tmp_path / "A.MHA", stored)
    write_itk(tmp_path / "copy.MHA", read_itk(path).array, path)
    assert np.array_equal(read_itk(tmp_path / "copy.MHA").array, stored)


def test_voxels_are_indexed_as_in_nifti(tmp_path: Path) -> None:
    stored = random_voxels("int16", (5, 6, 7))
    save(tmp_path / "scan.mha", stored)
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "scan.mha")), str(tmp_path / "scan.nii"))
    from adl_monai.data.nifti.file import read_nifti

    ours, theirs = read_itk(tmp_path / "scan.mha"), read_nifti(tmp_path / "scan.nii")
    assert np.array_equal(ours.array, theirs.array)
    assert np.allclose(ours.affine, theirs.affine, atol=1e-5)


def test_metadata_is_carried_with_its_own_types(tmp_path: Path) -> None:
    voxels = random_voxels("int16", (5, 6, 4))
    header = (
        "NRRD0005\ntype: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 5 6 4\n"
        "space directions: (0.5,0,0) (0,0.75,0) (0,0,2)\nspace origin: (1,2,3)\nendian: big\nencoding: raw\n"
        "measurement frame: (0,1,0) (1,0,0) (0,0,1)\nscanner:=a name\n\n"
    )
    path = tmp_path / "scan.nrrd"
    path.write_bytes(header.encode() + voxels.astype(">i2").tobytes(order="F"))
    volume = read_itk(path)
    assert np.array_equal(volume.array, voxels)
    assert np.allclose(volume.affine, [[0.5, 0, 0, 1], [0, 0.75, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]])
    write_itk(tmp_path / "copy.nrrd", volume.array, path)
    text = (tmp_path / "copy.nrrd").read_bytes().split(b"\n\n")[0].decode()
    assert "scanner:=a name" in text
    assert "measurement frame: (-0,-1,0) (-1,-0,0) (-0,-0,1)" in text  # ITK's LPS words for the same frame
    assert "ITK_InputFilterName" not in text
    assert np.allclose(read_itk(tmp_path / "copy.nrrd").affine, volume.affine)
    write_itk(tmp_path / "real.nrrd", volume.array + 0.25, path, "float32")
    assert "scanner:=a name" in (tmp_path / "real.nrrd").read_bytes().split(b"\n\n")[0].decode()
    assert np.array_equal(read_itk(tmp_path / "real.nrrd").array, volume.array + 0.25)


def test_mhd_with_its_raw_file_reads_and_becomes_mha(tmp_path: Path) -> None:
    stored = random_voxels("int16", (5, 6, 7))
    path = save(tmp_path / "scan.mhd", stored)
    volume = read_itk(path)
    assert np.array_equal(volume.array, stored)
    write_itk(tmp_path / "copy.mha", volume.array, path)
    assert np.array_equal(read_itk(tmp_path / "copy.mha").array, stored)
    with pytest.raises(OutputError, match="cannot write this format"):
        write_itk(tmp_path / "copy.mhd", volume.array, path)
    (tmp_path / "scan.raw").write_bytes((tmp_path / "scan.raw").read_bytes()[:-1])
    with pytest.raises(ScanFileError, match="cut short"):
        read_itk(path)
    (tmp_path / "scan.raw").unlink()
    with pytest.raises(ScanFileError, match="ElementDataFile"):
        read_itk(path)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_vectors_complex_and_4d_are_refused(tmp_path: Path, suffix: str) -> None:
    path = str(tmp_path / f"scan{suffix}")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 6, 5, 2), np.float32), isVector=True), path)
    with pytest.raises(ScanFileError, match="2 components"):
        read_itk(Path(path))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 6, 5), np.int16), isVector=False), path)
    with pytest.raises(ScanFileError, match="4D"):
        read_itk(Path(path))


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_nan_is_refused_with_its_count(tmp_path: Path, name: str) -> None:
    stored = random_voxels("float32", (6, 5))
    stored[2, 1:4] = np.nan
    with pytest.raises(ScanFileError, match="3 of 30 voxels are NaN"):
        read_itk(save(tmp_path / name, stored))


@pytest.mark.parametrize("name, compress", [("a.mha", False), ("a.mha", True), ("a.nrrd", False), ("a.nrrd", True)])
def test_truncated_files_are_refused(tmp_path: Path, name: str, compress: bool) -> None:
    path = save(tmp_path / name, random_voxels("uint16", (37, 61, 5)), compress)
    whole = path.read_bytes()
    for missing in (1, 3, 40, len(whole) // 10, len(whole) // 2, len(whole) - 30, len(whole) - 1, len(whole)):
        path.write_bytes(whole[: len(whole) - missing])
        with pytest.raises(ScanFileError):
            read_itk(path)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_flipped_bits_of_compressed_voxels_are_refused(tmp_path: Path, name: str) -> None:
    """ITK reads 98 of 100 such MetaImages without a word, with wrong voxels."""
    stored = random_voxels("uint16", (37, 61))
    path = save(tmp_path / name, stored, compress=True)
    whole = path.read_bytes()
    rng = np.random.default_rng(3)
    for byte in rng.integers(len(whole) // 2, len(whole) - 4, 60):
        damaged = bytearray(whole)
        damaged[byte] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ScanFileError):
            read_itk(path)


def test_headers_that_claim_too_much_are_refused_before_allocation(tmp_path: Path) -> None:
    for compress in (False, True):
        path = save(tmp_path / "a.mha", random_voxels("int16", (5, 6, 7)), compress)
        path.write_bytes(path.read_bytes().replace(b"DimSize = 5 6 7", b"DimSize = 50000 60000 7000"))
        with pytest.raises(ScanFileError, match="claims"):
            read_itk(path)


def test_foreign_content_and_missing_files(tmp_path: Path) -> None:
    for suffix in (".mha", ".nrrd"):
        path = tmp_path / f"text{suffix}"
        path.write_text("this is a text file\n" * 20)
        with pytest.raises(ScanFileError) as caught:
            read_itk(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        path.write_bytes(b"")
        with pytest.raises(ScanFileError, match="empty"):
            read_itk(path)
        with pytest.raises(UsageError, match="no such file"):
            read_itk(tmp_path / f"none{suffix}")


@pytest.mark.parametrize("suffix, dtype", [(".mha", "int16"), (".nrrd", "float32")])
def test_new_file_from_an_affine(tmp_path: Path, suffix: str, dtype: str) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(DIRECTION, (3, 3)) * [0.5, 0.75, 2.5]
    affine[:3, 3] = [-100, 42.5, 7]
    values = random_voxels(dtype, (5, 6, 7)).astype(np.float32)
    path = tmp_path / f"new{suffix}"
    plan = plan_itk_from_affine(path, values, affine, dtype)
    plan.save(path)
    found = read_itk(path)
    assert np.array_equal(found.array, values)
    assert np.allclose(found.affine, affine, atol=1e-12)
    assert found.dtype == np.dtype(dtype)


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path, oblique: np.ndarray) -> None:
    flat, deep = np.zeros((6, 5), np.float32), np.zeros((6, 5, 4), np.float32)
    with pytest.raises(OutputError, match="where this slice lies"):
        plan_itk_from_affine(tmp_path / "a.mha", flat, oblique, "int16")
    with pytest.raises(OutputError, match="cannot write this format"):
        write_volume(tmp_path / "a.mhd", flat, like=None, affine=np.eye(4), dtype="uint8")
    path = save(tmp_path / "scan.mha", deep)
    with pytest.raises(OutputError, match="does not fit"):
        plan_itk(tmp_path / "copy.mha", flat, path, "same")


def test_failed_write_is_an_output_error(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.mha", random_voxels("int16", (5, 6)))
    with pytest.raises(OutputError, match="could not be written"):
        plan_itk(path, read_itk(path).array, path, "same").save(tmp_path / "no" / "such" / "folder" / "copy.mha")


def test_nothing_on_stderr_and_no_simpleitk_at_import(tmp_path: Path) -> None:
    """Warnings of C++ libraries bypass Python's stderr, so they are looked for in a process of its own."""
    for name in ("a.mha", "a.nrrd"):
        save(tmp_path / name, random_voxels("uint8", (37, 61)))
        whole = (tmp_path / name).read_bytes()
        (tmp_path / f"bad_cut{name[1:]}").write_bytes(whole[: len(whole) // 2])
        (tmp_path / f"bad_text{name[1:]}").write_text("this is a text file\n" * 20)
    program = (
        "import sys; from pathlib import Path; import adl_monai.data.itk.file as itk\n"
        "from adl_monai.errors import AdlError\n"
        "assert 'SimpleITK' not in sys.modules\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: itk.read_itk(path)\n"
        "    except AdlError: assert path.stem.startswith('bad'), path\n"
    )
    environment: dict[str, Any] = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_warnings_stay_off_until_the_last_thread_is_done() -> None:
    shown = sitk.ProcessObject.GetGlobalWarningDisplay
    before = shown()
    sitk.ProcessObject.SetGlobalWarningDisplay(True)
    try:
        first, second = itk._quiet(), itk._quiet()  # as two threads enter and leave: not one inside the other
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert not shown()
        second.__exit__(None, None, None)
        assert shown()
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)
