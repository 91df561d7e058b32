"""A TIFF written like its source says of itself what the source did, and opens everywhere with equal voxels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from adl_monai.data.io import read_volume, write_volume
from adl_monai.data.tiff import file as tiff
from adl_monai.data.tiff.file import plan_tiff, plan_tiff_from_affine, read_tiff
from adl_monai.errors import OutputError
from tests.data.tiff_files import Tags, build_tiff, ratio, text

DESCRIPTION, PHOTOMETRIC, ORIENTATION = 270, 262, 274
DESCRIPTIVE = (269, DESCRIPTION, 271, 285, 297, 305, 306, 50838, 50839)
IMAGEJ = "ImageJ=1.54f\nimages=6\nslices=6\nunit=\\u00B5m\nspacing=0.8\nloop=false\nmin=3.0\nmax=90.0\n"
WORDS: Tags = {
    269: text("a document"), DESCRIPTION: text(IMAGEJ), 271: text("Maker"), 282: ratio(5, 2), 283: ratio(25, 10),
    285: text("first"), 296: (3, [1]), 297: (3, [0, 6]), 306: text("2024:01:02 03:04:05"),
    50838: (4, [12, 8]), 50839: (1, list(b"IJIJlabl\0\0\0\1\0a\0b\0c\0d")),
}  # fmt: skip
TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"]
SHOWN_BY_PILLOW = {(dtype, order) for dtype in ("uint8", "uint16", "float32") for order in "<>"} | {("int32", "<")}


def voxels(dtype: str, pages: int) -> np.ndarray:
    low = 0 if np.dtype(dtype).kind == "u" else -100
    return np.random.default_rng(7).integers(low, 100, (pages, 7, 9)).astype(dtype)


def denoised_copy(path: Path, dtype: str = "same") -> Path:
    volume, copy = read_volume(path), path.with_name(f"copy{path.suffix}")
    assert write_volume(copy, volume.array, like=path, affine=volume.affine, dtype=dtype) == 0
    return copy


def told(path: Path) -> tuple[str, bool, list[dict[int, Any]]]:
    """Byte order, whether it is a BigTIFF, and each page's descriptive tags, as the bytes of the file."""
    with tifffile.TiffFile(path) as file:
        pages = [{tag.code: tiff._raw(tag) for tag in page.tags if tag.code in DESCRIPTIVE} for page in file.pages]
        return file.byteorder, file.is_bigtiff, pages


def value(path: Path, code: int, page: int = 0) -> Any:
    with tifffile.TiffFile(path) as file:
        return file.pages[page].tags.valueof(code)


def ome(pixel_type: str = "uint8", inside: str = "", width: int = 9) -> str:
    return (
        '<?xml version="1.0"?><OME><Image><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
        f'Type="{pixel_type}" SizeX="{width}" SizeY="7" SizeZ="6" SizeC="1" SizeT="1" PhysicalSizeX="0.4">{inside}'
        "</Pixels></Image></OME>"
    )


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("pages", [1, 6])
@pytest.mark.parametrize("dtype", TYPES)
def test_words_and_voxels_come_back(tmp_path: Path, dtype: str, pages: int, order: str, big: bool) -> None:
    """A pixel of 0.4 micron became one of 1 mm, and the spacing of the slices was lost."""
    words = {**WORDS, DESCRIPTION: text("a photograph")}
    stored = voxels(dtype, pages)
    path = build_tiff(tmp_path / "a.tif", stored, [words, *[{285: text("later")}] * 5][:pages], order, big)
    copy = denoised_copy(path)
    assert told(copy) == told(path)
    assert told(copy)[:2] == (order, big)
    assert told(copy)[2][0].keys() == words.keys() & set(DESCRIPTIVE)
    assert (value(copy, 282), value(copy, 283), value(copy, 296)) == ((5, 2), (5, 2), 1)
    assert read_volume(copy).spacing == read_volume(path).spacing
    assert np.array_equal(tifffile.imread(copy).reshape(stored.shape), stored)
    assert tifffile.imread(copy).dtype == np.dtype(dtype)
    if dtype not in ("float16", "float64", "int64", "uint64"):  # which SimpleITK reads of nobody
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(copy))).reshape(stored.shape), stored)
    readable = (dtype, order) in SHOWN_BY_PILLOW and not (big and order == ">")  # which Pillow opens of nobody
    for index in range(pages if readable else 0):
        with Image.open(copy) as picture:
            picture.seek(index)
            assert np.array_equal(np.asarray(picture), stored[index])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_imagejs_words_come_back(tmp_path: Path, dtype: str, order: str) -> None:
    stored = voxels(dtype, 6)
    path = build_tiff(tmp_path / "a.tif", stored, [WORDS, *[{}] * 5], order)
    copy = denoised_copy(path)
    assert told(copy) == told(path)
    assert np.allclose(read_volume(copy).spacing, (4e-4, 4e-4, 8e-4))
    with tifffile.TiffFile(copy) as file:
        assert file.is_imagej
        assert file.series[0].axes == "ZYX"
        assert file.imagej_metadata["spacing"] == 0.8
        assert np.array_equal(file.asarray(), stored)
    copy = denoised_copy(build_tiff(tmp_path / "b.tif", stored, {DESCRIPTION: text(ome())}, order))
    assert np.array_equal(tifffile.imread(copy), stored)


@pytest.mark.parametrize("shape", [(3, 7, 9), (4, 7, 9), (5, 1, 9), (5, 7, 3), (4, 4, 4), (7, 1), (1, 9), (3, 3)])
@pytest.mark.parametrize("words", [{}, {"imagej": True}, {"metadata": None}])
def test_odd_shapes_come_back(tmp_path: Path, shape: tuple[int, ...], words: dict[str, Any]) -> None:
    """Three or four pixels along an axis are no colours."""
    stored = np.random.default_rng(5).integers(0, 99, shape).astype(np.uint8)
    extra = {"metadata": {"axes": "ZYX"[-len(shape) :]}} if words.get("imagej") else {}
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", **words, **extra)
    for copy in (denoised_copy(tmp_path / "a.tif"), tmp_path / "new.tif"):
        if copy.name == "new.tif":
            plan_tiff_from_affine(copy, stored.T.astype(np.float32), np.eye(4), "uint8").save(copy)
        assert np.array_equal(read_tiff(copy).array, stored.T)
        assert np.array_equal(tifffile.imread(copy).reshape(shape), stored)


def test_what_tifffile_compresses_comes_back_uncompressed_with_its_words(tmp_path: Path) -> None:
    stored = voxels("uint16", 6)
    tifffile.imwrite(
        tmp_path / "a.tif", stored, tile=(16, 16), compression="zstd", description="a heart", photometric="minisblack"
    )
    copy = denoised_copy(tmp_path / "a.tif")
    assert value(copy, 259) == 1
    with tifffile.TiffFile(copy) as file:
        words = [tag.value for tag in file.pages[0].tags if tag.code == DESCRIPTION]
        assert words[0] == "a heart"
        assert json.loads(words[1])["shape"] == [6, 7, 9]
        assert np.array_equal(file.asarray(), stored)


def test_voxels_lie_in_one_run_as_imagej_takes_them(tmp_path: Path) -> None:
    """ImageJ looks at the first directory alone where the description counts the images."""
    stored = voxels("uint16", 6)
    copy = denoised_copy(build_tiff(tmp_path / "a.tif", stored, [WORDS, *[{}] * 5], ">"))
    start = value(copy, 273)[0]
    assert np.array_equal(np.frombuffer(copy.read_bytes(), ">u2", stored.size, start).reshape(stored.shape), stored)


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("pages", [1, 6])
def test_what_is_white_stays_white(tmp_path: Path, photometric: int, pages: int) -> None:
    """The numbers came back as they were, but 0 was black then."""
    stored = voxels("uint8", pages)
    path = build_tiff(tmp_path / "a.tif", stored, {PHOTOMETRIC: (3, [photometric])})
    copy = denoised_copy(path)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(copy))).reshape(stored.shape), stored)
    assert [value(copy, PHOTOMETRIC, page) for page in range(pages)] == [photometric] * pages
    assert np.array_equal(np.asarray(Image.open(copy)), np.asarray(Image.open(path)))  # as displayed: 0 is white


@pytest.mark.parametrize("photometric", [0, 1])
def test_another_format_shows_white_as_black_with_a_warning(
    tmp_path: Path, photometric: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = build_tiff(tmp_path / "a.tif", voxels("uint8", 1), {PHOTOMETRIC: (3, [photometric])})
    volume = read_volume(path)
    write_volume(tmp_path / "a.png", volume.array, like=path, affine=volume.affine)
    assert np.array_equal(read_volume(tmp_path / "a.png").array, volume.array)
    assert ("a.png: 0 is white in" in caplog.text) == (photometric == 0)
    assert "no position" not in caplog.text


def test_rows_from_the_bottom_stay_so(tmp_path: Path) -> None:
    stored = voxels("uint8", 6)
    path = build_tiff(tmp_path / "a.tif", stored, {ORIENTATION: (3, [4])})
    copy = denoised_copy(path)
    assert value(copy, ORIENTATION) == 4
    assert np.array_equal(tifffile.imread(copy), stored)
    assert np.array_equal(read_volume(copy).affine, read_volume(path).affine)


def test_no_resolution_stays_none(tmp_path: Path) -> None:
    copy = denoised_copy(build_tiff(tmp_path / "a.tif", voxels("uint8", 1)))
    assert (value(copy, 282), value(copy, 283), value(copy, 296)) == ((1, 1), (1, 1), 1)  # no unit


def test_ome_xml_that_holds_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, dtype in (("uint8", "uint8"), ("float", "float32")):
        path = build_tiff(tmp_path / "a.tif", voxels(dtype, 6), [{DESCRIPTION: text(ome(name))}, *[{}] * 5])
        assert value(denoised_copy(path), DESCRIPTION) == ome(name)
    assert not caplog.text


@pytest.mark.parametrize("words, dtype", [
    (ome(), "float32"), (ome("uint16"), "same"), (ome(width=8), "same"),
    (ome(inside='<TiffData><UUID FileName="a.tif">urn:uuid:1</UUID></TiffData>'), "same"),
])  # fmt: skip
def test_ome_xml_that_would_be_wrong_is_dropped_with_a_warning(
    tmp_path: Path, words: str, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = build_tiff(tmp_path / "a.tif", voxels("uint8", 6), [{**WORDS, DESCRIPTION: text(words)}, *[{}] * 5])
    copy = denoised_copy(path, dtype)
    assert "OME" not in value(copy, DESCRIPTION)
    assert read_volume(copy).spacing == pytest.approx((4e-4,) * 3)
    assert read_volume(path).spacing == pytest.approx((4e-4,) * 3)
    assert value(copy, 271) == "Maker"
    assert caplog.text.count("OME-XML") == 1
    assert "was left out" in caplog.text


def test_imagej_words_outlast_another_type(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = build_tiff(tmp_path / "a.tif", voxels("uint8", 6), [WORDS, *[{}] * 5], ">")
    copy = denoised_copy(path, "float32")
    assert told(copy) == told(path)
    assert read_volume(copy).dtype == np.float32
    assert not caplog.text


def test_what_is_too_large_for_a_tiff_becomes_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_tiff(tmp_path / "a.tif", voxels("uint16", 6), [WORDS, *[{}] * 5], ">")
    assert not told(denoised_copy(path))[1]
    monkeypatch.setattr(tiff, "_CLASSIC_LIMIT", 500)
    copy = denoised_copy(path)
    assert told(copy) == (">", True, told(path)[2])
    assert np.array_equal(read_volume(copy).array, read_volume(path).array)


def test_a_folder_that_vanished_is_an_output_error(tmp_path: Path) -> None:
    path = build_tiff(tmp_path / "a.tif", voxels("uint8", 1))
    plan = plan_tiff(tmp_path / "copy.tif", read_volume(path).array, path, "same")
    with pytest.raises(OutputError, match="could not be written"):
        plan.save(tmp_path / "none" / "copy.tif")


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4), (1, 7, 5), (4, 1, 3)])
def test_a_new_tiff_keeps_the_voxel_size_and_says_what_is_lost(
    tmp_path: Path, shape: tuple[int, ...], oblique: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """A volume's slices were read back as 1 mm apart."""
    path, values = tmp_path / "a.tif", np.random.default_rng(1).random(shape).astype(np.float32)
    plan_tiff_from_affine(path, values, np.diag([-0.7, -0.3, 5, 1]), "float32").save(path)
    assert read_tiff(path).spacing == pytest.approx((0.7, 0.3, 5)[: len(shape)], rel=1e-8)
    assert not caplog.text
    plan_tiff_from_affine(path, values, oblique, "float32").save(path)
    assert "a.tif: .tif files keep no position" in caplog.text
    found = read_tiff(path)
    assert np.array_equal(found.array, values)
    assert found.spacing == pytest.approx(np.linalg.norm(oblique[:3, :3], axis=0)[: len(shape)], rel=1e-8)
    with tifffile.TiffFile(path) as file:
        assert file.series[0].kind == "imagej"
        assert np.array_equal(file.asarray(), values.T)


def test_half_precision_becomes_single_elsewhere(tmp_path: Path) -> None:
    path = build_tiff(tmp_path / "a.tif", voxels("float16", 6))
    volume = read_volume(path)
    write_volume(tmp_path / "a.nii.gz", volume.array, like=path, affine=volume.affine)
    assert read_volume(tmp_path / "a.nii.gz").dtype == np.float32
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz").array, volume.array)


def test_what_a_tiff_cannot_hold_is_refused(tmp_path: Path) -> None:
    flat, deep = np.zeros((6, 5), np.float32), np.zeros((6, 5, 1), np.float32)
    for values, affine, dtype, words in (
        (flat, np.eye(4), "complex64", "tiff files hold uint8, .*; got complex64"),
        (deep, np.eye(4), "uint8", "cannot hold shape"),
        (flat, np.zeros((4, 4)), "uint8", "singular"),
    ):
        with pytest.raises(OutputError, match=words):
            plan_tiff_from_affine(tmp_path / "a.tif", values, affine, dtype)
    path = build_tiff(tmp_path / "a.tif", voxels("uint8", 6))
    with pytest.raises(OutputError, match="does not fit"):
        plan_tiff(tmp_path / "b.tif", flat, path, "same")
