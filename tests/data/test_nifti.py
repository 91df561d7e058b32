import gzip
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from adl_monai.data.io import write_volume
from adl_monai.data.nifti.file import read_nifti
from adl_monai.errors import OutputError, ScanFileError, UsageError

from .conftest import SHAPE, build_nifti

Builder = Callable[..., Path]


def random_voxels(dtype: Any = np.int16, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(1)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 500, shape).astype(np.float32).astype(dtype)
    limits = np.iinfo(dtype)
    low, high = max(limits.min, -30000), min(limits.max, 30000)
    return rng.integers(low, high, shape, endpoint=True).astype(dtype)


def write_nifti(path: Path, array: np.ndarray, like: Path, dtype: str = "same") -> int:
    return write_volume(path, array, like=like, affine=read_nifti(like).affine, dtype=dtype)


def inflated(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.name.lower().endswith(".gz") else path.read_bytes()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ", "müller 雪.nii.gz"])
@pytest.mark.parametrize("version, order", [(1, "<"), (1, ">"), (2, "<"), (2, ">")])
@pytest.mark.parametrize("dtype, scale", [("int16", (0.37, -1024.0)), ("uint8", (0.0, np.nan)), ("float32", (1, 0))])
def test_reading_agrees_with_nibabel_and_writing_back_gives_the_same_bytes(
    nifti: Builder, tmp_path: Path, oblique: np.ndarray, name: str, version: int, order: str, dtype: str, scale: Any
) -> None:
    stored = random_voxels(dtype)
    path = nifti(
        stored, name, affine=oblique, codes=(4, 2), scale=scale, order=order, version=version, units=2 + 16,
        extension=b"seven b",
    )  # fmt: skip
    volume = read_nifti(path)
    reference = nib.load(path)
    assert volume.array.shape == SHAPE
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, reference.get_fdata().astype(np.float32))
    assert np.array_equal(volume.affine, reference.affine)
    assert volume.dtype == np.dtype(dtype).newbyteorder(order)

    copy = tmp_path / f"copy{''.join(path.suffixes)}"
    assert write_nifti(copy, volume.array, path) == 0
    assert inflated(copy) == inflated(path)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "uint32", "int64", "uint64", "float64"])
def test_identity_for_the_other_types(nifti: Builder, tmp_path: Path, dtype: str) -> None:
    path = nifti(random_voxels(dtype))
    write_nifti(tmp_path / "copy.nii", read_nifti(path).array, path)
    assert inflated(tmp_path / "copy.nii") == inflated(path)


@pytest.mark.parametrize(
    "shape", [(37, 61), (37, 61, 1), (37, 61, 1, 1), (37, 61, 23, 1), (37, 61, 23, 1, 1), (1, 5, 3)]
)
def test_shapes_are_kept(nifti: Builder, tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = nifti(random_voxels(shape=shape))
    volume = read_nifti(path)
    assert volume.array.shape == shape[:3]
    write_nifti(tmp_path / "copy.nii", volume.array, path)
    assert nib.load(tmp_path / "copy.nii").shape == shape
    assert inflated(tmp_path / "copy.nii") == inflated(path)


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 3), (0, 0)])
def test_form_codes_choose_the_affine_as_in_nibabel(
    nifti: Builder, oblique: np.ndarray, codes: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    path = nifti(random_voxels(), affine=oblique, codes=codes)
    with caplog.at_level(logging.WARNING, "adl_monai"):
        volume = read_nifti(path)
    assert np.array_equal(volume.affine, nib.load(path).affine)
    assert ("both 0" in caplog.text) is (codes == (0, 0))


@pytest.mark.parametrize("units, factor", [(0, 1), (1, 1e3), (2, 1), (3, 1e-3), (1 + 8, 1e3), (3 + 16, 1e-3)])
def test_affine_is_in_mm_whatever_the_unit(nifti: Builder, tmp_path: Path, units: int, factor: float) -> None:
    path = nifti(random_voxels(), affine=np.diag([2.0, 3, 4, 1]), units=units)
    volume = read_nifti(path)
    assert np.allclose(volume.spacing, np.array([2, 3, 4]) * factor)
    write_nifti(tmp_path / "copy.nii", volume.array, path)
    assert inflated(tmp_path / "copy.nii") == inflated(path)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1)])
def test_one_slice_without_a_third_voxel_length_has_a_usable_affine(nifti: Builder, shape: tuple[int, ...]) -> None:
    path = nifti(random_voxels(shape=shape), fields={"srow_x": [0.5, 0, 0, 1], "srow_z": [0, 0, 0, 2]})
    affine = read_nifti(path).affine
    assert np.allclose(affine[:3, 2], [0, 0, 1])


def test_disagreeing_forms_and_pixdim_are_warned_of_and_kept(
    nifti: Builder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = nifti(random_voxels(), codes=(1, 1), fields={"qoffset_x": 99.0, "pixdim": [1, 2, 2, 2, 0, 0, 0, 0]})
    with caplog.at_level(logging.WARNING, "adl_monai"):
        volume = read_nifti(path)
    assert "sform and qform disagree" in caplog.text
    assert "pixdim disagrees" in caplog.text
    write_nifti(tmp_path / "copy.nii", volume.array, path)
    assert inflated(tmp_path / "copy.nii") == inflated(path)


@pytest.mark.parametrize("version, order", [(1, "<"), (2, ">")])
def test_float32_variant_changes_only_type_and_scale(nifti: Builder, tmp_path: Path, version: int, order: str) -> None:
    path = nifti(random_voxels(), scale=(0.5, 10.0), order=order, version=version, extension=b"kept", codes=(3, 2))
    values = read_nifti(path).array + np.float32(0.123)
    assert write_nifti(tmp_path / "copy.nii", values, path, "float32") == 0
    before, after = nib.load(path).header, nib.load(tmp_path / "copy.nii").header
    changed = {name for name in before.keys() if before[name].tobytes() != after[name].tobytes()}  # noqa: SIM118
    assert changed == {"datatype", "bitpix"}  # nibabel blanks the scale of both; it is compared below
    assert before.extensions == after.extensions
    assert np.array_equal(read_nifti(tmp_path / "copy.nii").array, values)
    assert nib.load(tmp_path / "copy.nii").dataobj.slope == 1
    assert nib.load(tmp_path / "copy.nii").dataobj.inter == 0


def test_saturation_is_counted_and_logged(nifti: Builder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = nifti(random_voxels("uint8"))
    values = read_nifti(path).array.copy()
    values[0, 0, :3] = [-4.0, 300.0, 1e9]
    with caplog.at_level(logging.WARNING, "adl_monai"):
        assert write_nifti(tmp_path / "copy.nii", values, path) == 3
    assert "3 voxels do not fit uint8" in caplog.text
    assert read_nifti(tmp_path / "copy.nii").array[0, 0, :3].tolist() == [0, 255, 255]


def test_equal_scans_give_equal_gz_files(nifti: Builder, tmp_path: Path) -> None:
    path = nifti(random_voxels())
    for name in ("one.nii.gz", "two.nii.gz"):
        write_nifti(tmp_path / name, read_nifti(path).array, path)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.nii.gz", "two.nii.gz"))
    assert one == two
    assert one[3:8] == bytes(5)  # no name and no time, which is the same within a second


@pytest.mark.parametrize("shape", [(37, 61), (37, 61, 23), (6, 5, 1), (40000, 2, 2)])
def test_new_file_from_an_affine(tmp_path: Path, shape: tuple[int, ...], caplog: pytest.LogCaptureFixture) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, -1]]) * [0.5, 0.75, 2.5]
    affine[:3, 3] = [-100, 42.5, 7]
    values = random_voxels("float32", shape)
    assert write_volume(tmp_path / "new.nii.gz", values, like=None, affine=affine, dtype="float32") == 0
    image = nib.load(tmp_path / "new.nii.gz")
    assert image.shape == shape
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert np.allclose(image.get_qform(), affine, atol=1e-5)
    assert np.allclose(image.affine, affine, atol=1e-5)
    assert np.array_equal(image.get_fdata(), values)
    assert np.array_equal(read_nifti(tmp_path / "new.nii.gz").array, values)
    assert not caplog.records


def test_a_shear_is_kept_in_the_sform_alone(tmp_path: Path, oblique: np.ndarray) -> None:
    write_volume(tmp_path / "new.nii", random_voxels("float32"), like=None, affine=oblique, dtype="int16")
    image = nib.load(tmp_path / "new.nii")
    assert np.allclose(image.affine, oblique)
    assert image.header["qform_code"] == 0


def test_refused_outputs(nifti: Builder, tmp_path: Path, oblique: np.ndarray) -> None:
    path = nifti(random_voxels())
    with pytest.raises(OutputError, match="does not fit"):
        write_nifti(tmp_path / "copy.nii", np.zeros((37, 61, 22), np.float32), path)
    with pytest.raises(OutputError, match="float16"):
        write_nifti(tmp_path / "copy.nii", np.zeros(SHAPE, np.float32), path, "float16")
    with pytest.raises(OutputError, match="singular"):
        write_volume(tmp_path / "copy.nii", np.zeros(SHAPE), like=None, affine=np.zeros((4, 4)), dtype="int16")
    assert not (tmp_path / "copy.nii").exists()


FIELD_FAULTS = [
    ({"magic": b"n-1\0"}, "magic"),
    ({"magic": b"ni1\0"}, "pair"),
    ({"sizeof_hdr": 347}, "sizeof_hdr"),
    ({"vox_offset": 0}, "vox_offset"),
    ({"vox_offset": np.nan}, "vox_offset"),
    ({"vox_offset": 352.5}, "vox_offset"),
    ({"vox_offset": 1e9}, "claim"),
    ({"dim": [0, 37, 61, 23]}, r"dim\[0\] is 0"),
    ({"dim": [1, 37, 61, 23]}, r"dim\[0\] is 1"),
    ({"dim": [9, 37, 61, 23]}, r"dim\[0\] is 9"),
    ({"dim": [3, 37, -61, 23]}, r"dim\[2\] is -61"),
    ({"dim": [3, 37, 61, 0]}, r"dim\[3\] is 0"),
    ({"dim": [3, 32767, 32767, 32767]}, "claim"),
    ({"dim": [4, 37, 61, 1, 23]}, "4D"),
    ({"dim": [5, 37, 61, 1, 1, 23]}, "5D"),
    ({"datatype": 32, "bitpix": 64}, "complex64"),
    ({"datatype": 128, "bitpix": 24}, "RGB"),
    ({"datatype": 1536, "bitpix": 128}, "float128"),
    ({"datatype": 77}, "unknown type"),
    ({"bitpix": 8}, "bitpix"),
    ({"scl_slope": np.nan}, "scl_slope"),
    ({"scl_slope": np.inf}, "scl_slope"),
    ({"scl_slope": 2, "scl_inter": np.nan}, "scl_inter"),
    ({"scl_slope": 3e38}, "float32"),
    ({"srow_x": [np.nan, 0, 0, 0]}, "sform.*not finite"),
    ({"srow_x": [0, 0, 0, 0]}, "sform.*singular"),
    ({"sform_code": 0, "qform_code": 1, "quatern_b": np.nan}, "qform"),
    ({"sform_code": 0, "qform_code": 1, "quatern_b": 3.0}, "qform"),
    ({"sform_code": 0, "qform_code": 1, "pixdim": [1, 0, 1, 1, 1, 1, 1, 1]}, "qform.*singular"),
    ({"sform_code": 0, "qform_code": 0, "pixdim": [1, 0, 1, 1, 1, 1, 1, 1]}, "pixdim.*singular"),
]


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("fields, word", FIELD_FAULTS, ids=lambda value: str(value)[:40])
def test_header_faults_are_refused_by_name(nifti: Builder, name: str, fields: dict[str, Any], word: str) -> None:
    path = nifti(random_voxels(), name, fields=fields)
    with pytest.raises(ScanFileError, match=word) as caught:
        read_nifti(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "stored, word",
    [
        (np.array([[[np.nan, 1, np.inf]]], np.float32), "2 of 3 voxels are NaN"),
        (np.array([[[1e300, 1, 2]]], np.float64), "1 values exceed"),
        (np.ones((3, 4, 5), np.complex64), "complex64"),
        (np.ones((3, 4, 5, 2), np.int16), "4D"),
        (np.ones((3, 4, 5, 1, 3), np.int16), "5D"),
    ],
)
def test_voxel_faults(nifti: Builder, stored: np.ndarray, word: str) -> None:
    with pytest.raises(ScanFileError, match=word):
        read_nifti(nifti(stored))


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_truncation_at_every_kind_of_place(nifti: Builder, name: str) -> None:
    path = nifti(random_voxels(), name)
    whole = path.read_bytes()
    for length in (1, 4, 200, 348, 351, 353, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ScanFileError):
            read_nifti(path)


# No time of day in what names a test: both processes of a run must see the same names.
@pytest.mark.parametrize(
    "content, name, word",
    [
        (b"", "scan.nii", "empty"),
        (b"", "scan.nii.gz", "empty"),
        (b"this is a text file\n" * 50, "scan.nii", "magic"),
        (b"this is a text file\n" * 50, "scan.nii.gz", "gzip"),
        (gzip.compress(b"this is a text file\n" * 50, mtime=0), "scan.nii.gz", "magic"),
        (gzip.compress(b"", mtime=0), "scan.nii.gz", "magic"),
    ],
)
def test_files_that_are_no_nifti(tmp_path: Path, content: bytes, name: str, word: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ScanFileError, match=word):
        read_nifti(tmp_path / name)


def test_gzip_under_a_plain_name_and_missing_files(nifti: Builder, tmp_path: Path) -> None:
    path = nifti(random_voxels(), "scan.nii.gz")
    path.rename(tmp_path / "scan.nii")
    with pytest.raises(ScanFileError, match=r"rename it to end in \.nii\.gz"):
        read_nifti(tmp_path / "scan.nii")
    with pytest.raises(UsageError, match="no such file"):
        read_nifti(tmp_path / "none.nii")


def test_one_flipped_bit_of_a_gz_is_refused_or_changes_nothing(tmp_path: Path, oblique: np.ndarray) -> None:
    """400 flips. What passes must inflate to the very same bytes: bits of the gzip header that carry no data (time,
    system), or a few of deflate's, such as another copy of the same zeros.
    """
    path = build_nifti(tmp_path / "scan.nii.gz", random_voxels(shape=(9, 10, 7)), oblique, scale=(0.5, 3.0))
    whole = path.read_bytes()
    bits = np.random.default_rng(7).choice(len(whole) * 8, 400, replace=False)
    refused = sum(flip_is_refused(path, whole, int(bit)) for bit in bits)
    assert refused >= 390


def test_flips_of_every_byte_after_the_gzip_header(tmp_path: Path) -> None:
    path = build_nifti(tmp_path / "scan.nii.gz", random_voxels(shape=(3, 4, 5)))
    whole = path.read_bytes()
    refused = [flip_is_refused(path, whole, 8 * byte + byte % 8) for byte in range(10, len(whole))]
    assert np.mean(refused) > 0.95
    assert all(refused[-8:])  # the checksum and the length themselves


def flip_is_refused(path: Path, whole: bytes, bit: int) -> bool:
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(damaged)
    try:
        read_nifti(path)
    except ScanFileError:
        return True
    assert gzip.decompress(damaged) == gzip.decompress(whole)
    return False
