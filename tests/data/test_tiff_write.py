"""A TIFF or PNG written like its source says of itself what the source did, and opens everywhere with equal voxels."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from adl_monai.data import tiff_write
from adl_monai.data.io import read_volume, write_volume
from adl_monai.data.tiff_tags import DESCRIPTION, DESCRIPTIVE, ORIENTATION, PHOTOMETRIC, read_tiff
from adl_monai.errors import OutputError
from tests.data.tiff_files import Tags, build_tiff, ratio, text

IMAGEJ = "ImageJ=1.54f\nimages=6\nslices=6\nunit=\\u00B5m\nspacing=0.8\nloop=false\nmin=3.0\nmax=90.0\n"
WORDS: Tags = {
    269: text("a document"), DESCRIPTION: text(IMAGEJ), 271: text("Maker"), 282: ratio(5, 2), 283: ratio(25, 10),
    285: text("first"), 296: (3, [1]), 297: (3, [0, 6]), 306: text("2024:01:02 03:04:05"),
    50838: (4, [12, 8]), 50839: (1, list(b"IJIJlabl\0\0\0\1\0a\0b\0c\0d")),
}  # fmt: skip
SHOWN_BY_PILLOW = {(dtype, order) for dtype in ("uint8", "uint16", "float32") for order in "<>"} | {("int32", "<")}


def voxels(dtype: str, pages: int) -> np.ndarray:
    low = 0 if np.dtype(dtype).kind == "u" else -100
    return np.random.default_rng(7).integers(low, 100, (pages, 7, 9)).astype(dtype)


def denoised_copy(path: Path, dtype: str = "same") -> Path:
    volume, copy = read_volume(path), path.with_name(f"copy{path.suffix}")
    assert write_volume(copy, volume.array, like=path, affine=volume.affine, dtype=dtype) == 0
    return copy


def ome(pixel_type: str = "uint8", inside: str = "", width: int = 9) -> str:
    return (
        '<?xml version="1.0"?><OME><Image><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
        f'Type="{pixel_type}" SizeX="{width}" SizeY="7" SizeZ="6" SizeC="1" SizeT="1" PhysicalSizeX="0.4">{inside}'
        "</Pixels></Image></OME>"
    )


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("pages", [1, 6])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32"])
def test_words_and_voxels_come_back(tmp_path: Path, dtype: str, pages: int, order: str, big: bool) -> None:
    """A pixel of 0.4 micron became one of 1 mm, and the spacing of the slices was lost."""
    words = WORDS if pages == 6 else {**WORDS, DESCRIPTION: text("a photograph")}
    stored = voxels(dtype, pages)
    path = build_tiff(tmp_path / "a.tif", stored, [words, *[{285: text("later")}] * 5][:pages], order, big)
    copy = denoised_copy(path)
    source, written = read_tiff(path), read_tiff(copy)
    assert (written.order, written.big, len(written.pages)) == (order, big, pages)
    for before, after in zip(source.pages, written.pages, strict=True):
        assert {tag: before[tag] for tag in DESCRIPTIVE if tag in before} == {
            tag: after[tag] for tag in DESCRIPTIVE if tag in after
        }
    assert set(DESCRIPTIVE) & source.pages[0].keys() == words.keys()
    image = sitk.ReadImage(str(copy))
    assert np.array_equal(sitk.GetArrayFromImage(image).reshape(stored.shape), stored)
    assert image.GetPixelID() == sitk.ReadImage(str(path)).GetPixelID()
    readable = (dtype, order) in SHOWN_BY_PILLOW and not (big and order == ">")  # which Pillow opens of nobody
    for index in range(pages if readable else 0):
        with Image.open(copy) as picture:
            picture.seek(index)
            assert np.array_equal(np.asarray(picture), stored[index])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tifffile_finds_the_same_stack(tmp_path: Path, dtype: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    stored = voxels(dtype, 6)
    for order in "<>":
        copy = denoised_copy(build_tiff(tmp_path / "a.tif", stored, [WORDS, *[{}] * 5], order))
        with tifffile.TiffFile(copy) as file:
            assert file.is_imagej
            assert file.series[0].axes == "ZYX"
            assert file.imagej_metadata["spacing"] == 0.8
            assert np.array_equal(file.asarray(), stored)
        copy = denoised_copy(build_tiff(tmp_path / "b.tif", stored, {DESCRIPTION: text(ome())}, order))
        assert np.array_equal(tifffile.imread(copy), stored)


def test_voxels_lie_in_one_run_as_imagej_takes_them(tmp_path: Path) -> None:
    """ImageJ looks at the first directory alone where the description counts the images."""
    stored = voxels("uint16", 6)
    copy = denoised_copy(build_tiff(tmp_path / "a.tif", stored, [WORDS, *[{}] * 5], ">"))
    assert np.array_equal(np.frombuffer(copy.read_bytes(), ">u2", stored.size, 8).reshape(stored.shape), stored)


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("pages", [1, 6])
def test_what_is_white_stays_white(tmp_path: Path, photometric: int, pages: int) -> None:
    """The numbers came back as they were, but 0 was black then."""
    stored = voxels("uint8", pages)
    path = build_tiff(tmp_path / "a.tif", stored, {PHOTOMETRIC: (3, [photometric])})
    copy = denoised_copy(path)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(copy))).reshape(stored.shape), stored)
    assert [read_tiff(copy).integer(page, PHOTOMETRIC, -1) for page in range(pages)] == [photometric] * pages
    assert np.array_equal(np.asarray(Image.open(copy)), np.asarray(Image.open(path)))  # as displayed: 0 is white


def test_rows_from_the_bottom_stay_so(tmp_path: Path) -> None:
    stored = voxels("uint8", 6)
    path = build_tiff(tmp_path / "a.tif", stored, {ORIENTATION: (3, [4])})
    assert np.array_equal(read_volume(path).array, stored[:, ::-1].T)
    copy = denoised_copy(path)
    assert read_tiff(copy).integer(0, ORIENTATION) == 4
    assert copy.read_bytes()[8 : 8 + stored.size] == stored.tobytes()


def test_no_resolution_stays_none(tmp_path: Path) -> None:
    copy = denoised_copy(build_tiff(tmp_path / "a.tif", voxels("uint8", 1)))
    assert not {282, 283, 296} & read_tiff(copy).pages[0].keys()


def test_ome_xml_that_holds_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, dtype in (("uint8", "uint8"), ("float", "float32")):
        path = build_tiff(tmp_path / "a.tif", voxels(dtype, 6), [{DESCRIPTION: text(ome(name))}, *[{}] * 5])
        assert read_tiff(denoised_copy(path)).text(0) == ome(name)
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
    assert DESCRIPTION not in read_tiff(copy).pages[0]
    assert read_tiff(copy).pages[0][282] == read_tiff(path).pages[0][282]
    assert caplog.text.count("OME-XML") == 1
    assert "was left out" in caplog.text


def test_imagej_words_outlast_another_type(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = build_tiff(tmp_path / "a.tif", voxels("uint8", 6), [WORDS, *[{}] * 5], ">")
    copy = denoised_copy(path, "float32")
    assert read_tiff(copy).text(0) == IMAGEJ
    assert read_volume(copy).dtype == np.float32
    assert not caplog.text


def test_what_is_too_large_for_a_tiff_becomes_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_tiff(tmp_path / "a.tif", voxels("uint16", 6), [WORDS, *[{}] * 5], ">")
    assert not read_tiff(denoised_copy(path)).big
    monkeypatch.setattr(tiff_write, "_CLASSIC_LIMIT", 500)
    copy = denoised_copy(path)
    assert read_tiff(copy).big
    assert read_tiff(copy).text(0) == IMAGEJ
    assert np.array_equal(read_volume(copy).array, read_volume(path).array)


def test_an_odd_number_of_bytes_leaves_directories_at_even_offsets(tmp_path: Path) -> None:
    copy = denoised_copy(build_tiff(tmp_path / "a.tif", voxels("uint8", 1), {DESCRIPTION: text("even")}))
    assert struct.unpack("<I", copy.read_bytes()[4:8])[0] % 2 == 0


def test_a_folder_that_vanished_is_an_output_error(tmp_path: Path) -> None:
    from adl_monai.data.itk import plan_itk

    path = build_tiff(tmp_path / "a.tif", voxels("uint8", 1))
    plan = plan_itk(tmp_path / "copy.tif", read_volume(path).array, path)
    with pytest.raises(OutputError, match="could not be written"):
        plan.save(tmp_path / "none" / "copy.tif")


def png_chunk(path: Path, name: bytes) -> bytes | None:
    content = path.read_bytes()
    assert content.count(name) <= 1
    place = content.find(name)
    return None if place < 0 else content[place + 4 : place + 4 + int.from_bytes(content[place - 4 : place], "big")]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_resolution_is_kept(tmp_path: Path, dtype: type) -> None:
    """300 dots an inch went in and none came out, but a scale of 1 that nobody had given."""
    path = tmp_path / "a.png"
    Image.fromarray(voxels("uint8", 1)[0].astype(dtype)).save(path, dpi=(300, 150))
    copy = denoised_copy(path)
    assert Image.open(copy).info["dpi"] == pytest.approx((300, 150), rel=1e-4)
    assert png_chunk(copy, b"pHYs") == png_chunk(path, b"pHYs")
    assert png_chunk(copy, b"sCAL") is None
    assert np.array_equal(np.asarray(Image.open(copy)), voxels("uint8", 1)[0])


def test_png_scale_is_kept_and_none_is_made_up(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(voxels("uint8", 1)[0])
    image.SetSpacing((0.5, 0.75))
    sitk.WriteImage(image, str(tmp_path / "a.png"))
    copy = denoised_copy(tmp_path / "a.png")
    assert png_chunk(copy, b"sCAL") == png_chunk(tmp_path / "a.png", b"sCAL") is not None
    assert read_volume(copy).spacing == pytest.approx((0.5, 0.75))
    Image.fromarray(voxels("uint8", 1)[0]).save(tmp_path / "b.png")
    copy = denoised_copy(tmp_path / "b.png")
    assert png_chunk(copy, b"sCAL") is None
    assert png_chunk(copy, b"pHYs") is None
