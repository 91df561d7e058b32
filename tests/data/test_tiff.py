"""What TIFF and PNG files may hold is read truly; anything else is refused in words that say what it is."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adl_monai.data.itk import read_itk
from adl_monai.errors import ScanFileError
from tests.data.tiff_files import Tags, build_tiff, text

DEPTH, ROWS, COLUMNS = 6, 7, 9


def stack(dtype: str = "uint8", pages: int = DEPTH) -> np.ndarray:
    rng = np.random.default_rng(4)
    return rng.integers(-100 if np.dtype(dtype).kind in "if" else 0, 100, (pages, ROWS, COLUMNS)).astype(dtype)


def refused(path: Path) -> str:
    with pytest.raises(ScanFileError) as caught:
        read_itk(path)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".")
    return message.removeprefix(str(path))


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("pages", [1, DEPTH])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32"])
def test_these_kinds_are_read_truly(tmp_path: Path, dtype: str, pages: int, order: str, big: bool) -> None:
    voxels = stack(dtype, pages)
    volume = read_itk(build_tiff(tmp_path / "a.tif", voxels, order=order, big=big))
    assert volume.dtype == np.dtype(dtype)
    assert np.array_equal(volume.array, (voxels if pages > 1 else voxels[0]).T)


@pytest.mark.parametrize("dtype, words", [
    ("float16", "16-bit real numbers"), ("float64", "64-bit real numbers"), ("uint64", "64-bit unsigned integers"),
    ("int64", "64-bit signed integers"), ("complex64", "64-bit complex numbers"),
    ("complex128", "128-bit complex numbers"),
])  # fmt: skip
@pytest.mark.parametrize("pages", [1, DEPTH])
def test_other_kinds_are_refused_by_name(tmp_path: Path, dtype: str, words: str, pages: int) -> None:
    """Half precision was read as the integers of the same bits."""
    message = refused(build_tiff(tmp_path / "a.tif", stack("int8", pages).astype(dtype)))
    assert words in message
    assert "expected integers of 8, 16 or 32 bits" in message


@pytest.mark.parametrize("tags, words", [
    ({258: (3, [1])}, "1-bit unsigned integers"), ({258: (3, [4])}, "4-bit unsigned integers"),
    ({258: (3, [12])}, "12-bit unsigned integers"), ({258: (3, [24])}, "24-bit unsigned integers"),
    ({258: None}, "1-bit unsigned integers"), ({339: (3, [4])}, "samples of the unknown format 4"),
    ({339: (3, [3])}, "8-bit real numbers"), ({339: (3, [5])}, "8-bit complex integers"),
    ({339: (8, [3])}, "8-bit real numbers"), ({277: (8, [2])}, "2 samples"),
    ({262: (3, [2])}, "RGB colour"), ({262: (3, [5])}, "CMYK colour"), ({262: (3, [6])}, "YCbCr colour"),
    ({262: (3, [3]), 320: (3, [257 * value for value in range(256)] * 3)}, "colours from a palette"),
    ({262: (3, [32844])}, "photometric interpretation 32844"), ({262: None}, "no photometric interpretation"),
    ({274: (3, [6])}, "orientation 6"), ({274: (3, [2])}, "orientation 2"),
    ({259: (3, [50000])}, "compressed by Zstandard"), ({259: (3, [34925])}, "compressed by LZMA"),
    ({259: (3, [4711])}, "compressed by scheme 4711"),
    ({273: None, 279: None, 278: None, 322: (3, [16]), 323: (3, [16]), 324: (4, [8]), 325: (4, [63])}, "in tiles"),
    ({254: (4, [1])}, "thumbnail or mask"), ({254: (4, [4])}, "thumbnail or mask"), ({255: (3, [2])}, "thumbnail"),
])  # fmt: skip
@pytest.mark.parametrize("place", ["only page", "last page"])
def test_what_itk_would_turn_to_something_else_is_named(tmp_path: Path, tags: Tags, words: str, place: str) -> None:
    """Grey tiles, 1 and 4 bits and turned images were called colour, a grey palette was read 256 times too bright."""
    if place == "only page":
        message = refused(build_tiff(tmp_path / "a.tif", stack(pages=1), tags))
        assert "the image " in message
    else:
        message = refused(build_tiff(tmp_path / "a.tif", stack(), [*[{}] * (DEPTH - 1), tags]))
        assert f"TIFF page {DEPTH} " in message
    assert words in message
    assert "damaged" not in message
    assert "expected" in message


@pytest.mark.parametrize("samples", [2, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("place", ["only page", "all pages", "last page"])
def test_several_samples_a_pixel_are_refused(tmp_path: Path, samples: int, dtype: str, place: str) -> None:
    """ITK reads them as one, so a line's second half came from the next samples."""
    grey = list(stack(dtype))
    many = [np.stack([page] * samples, -1) for page in grey]
    pages = {"only page": many[:1], "all pages": many, "last page": [*grey[:-1], many[-1]]}[place]
    extra: Tags = {338: (3, [0] * (samples - 1))}
    path = build_tiff(tmp_path / "a.tif", pages, [extra if page.ndim == 3 else {} for page in pages])
    assert f"{samples} samples a pixel" in refused(path)


def test_grey_with_transparency_is_refused_as_such(tmp_path: Path) -> None:
    grey = stack(pages=1)[0]
    Image.fromarray(np.stack([grey, np.full_like(grey, 255)], -1), mode="LA").save(tmp_path / "a.tif")
    assert "2 samples a pixel (channels, or grey with transparency)" in refused(tmp_path / "a.tif")
    Image.fromarray(np.stack([grey, np.full_like(grey, 255)], -1), mode="LA").save(tmp_path / "a.png")
    assert "pixels are grey with transparency; expected one grey value" in refused(tmp_path / "a.png")
    Image.fromarray(grey).save(tmp_path / "b.png", transparency=7)
    assert "grey with a transparent value; expected one grey value" in refused(tmp_path / "b.png")
    Image.fromarray(grey).convert("RGBA").save(tmp_path / "c.png")
    assert "RGB with transparency" in refused(tmp_path / "c.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "d.png")
    assert "colours from a palette" in refused(tmp_path / "d.png")


@pytest.mark.parametrize("last, words", [
    (np.zeros((ROWS, COLUMNS), np.uint16), "16-bit unsigned integers, not 8-bit unsigned integers as on page 1"),
    (np.zeros((ROWS, COLUMNS), np.int8), "8-bit signed integers, not 8-bit unsigned integers as on page 1"),
    (np.zeros((COLUMNS, ROWS), np.uint8), "7 x 9 pixels, not 9 x 7 pixels as on page 1"),
    (np.zeros((ROWS, COLUMNS, 3), np.uint8), "3 samples"),
])  # fmt: skip
def test_a_last_page_of_another_kind_is_refused(tmp_path: Path, last: np.ndarray, words: str) -> None:
    message = refused(build_tiff(tmp_path / "a.tif", [*stack(), last]))
    assert f"TIFF page {DEPTH + 1} has {words}" in message


@pytest.mark.parametrize("tag, value", [(262, 0), (274, 4)])
def test_a_last_page_shown_otherwise_is_refused(tmp_path: Path, tag: int, value: int) -> None:
    tags: list[Tags] = [{}] * (DEPTH - 1) + [{tag: (3, [value])}]
    assert f" {value}, not " in refused(build_tiff(tmp_path / "a.tif", stack(), tags))


def imagej(**counts: object) -> str:
    return "ImageJ=1.54f\n" + "".join(f"{name}={count}\n" for name, count in counts.items())


def ome(slices: int = DEPTH, channels: int = 1, times: int = 1, inside: str = "", images: int = 1) -> str:
    pixels = (
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{COLUMNS}" '
        f'SizeY="{ROWS}" SizeC="{channels}" SizeZ="{slices}" SizeT="{times}">{inside}</Pixels></Image>'
    )
    return (
        f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{pixels * images}</OME>'
    )


GOOD = [
    imagej(images=DEPTH, slices=DEPTH, spacing=0.8, unit="micron"), imagej(images=DEPTH), imagej(),
    imagej(images=DEPTH, channels=1, slices=DEPTH, frames=1, hyperstack="true"),
    ome(), ome(inside=f'<TiffData IFD="0" PlaneCount="{DEPTH}"/>'), ome(inside='<TiffData FirstZ="2" IFD="2"/>'),
    json.dumps({"shape": [DEPTH, ROWS, COLUMNS]}), json.dumps({"shape": [1, DEPTH, ROWS, COLUMNS], "axes": "CZYX"}),
    json.dumps({"shape": [ROWS, COLUMNS]}),  # each page was written by itself
    '{"shape": "none"}', '{"shape": [1e999]}', '{"shape":' + "[" * 100_000, "a plain description", "channels=3\n",
    "ImageJ=1\nimages=" + "9" * 5000,
]  # fmt: skip
BAD = [
    (imagej(images=DEPTH, channels=3, slices=2, hyperstack="true"), "ImageJ describes 3 channels"),
    (imagej(images=DEPTH, frames=DEPTH), f"ImageJ describes {DEPTH} time points"),
    (imagej(images=DEPTH + 4, slices=DEPTH + 4), f"counts {DEPTH + 4} images, but the file has {DEPTH} TIFF pages"),
    (ome(2, channels=3), "OME-XML describes 3 channels"), (ome(2, times=3), "OME-XML describes 3 time points"),
    (ome().replace("<", "<OME:").replace("<OME:/", "</OME:").replace('SizeC="1"', "SizeC = '3'"), "3 channels"),
    (ome(DEPTH + 1), f"counts {DEPTH + 1} slices, but the file has {DEPTH} TIFF pages"), (ome(3, images=2), "2 images"),
    (ome(inside='<TiffData FirstZ="0" IFD="5"/>'), "puts page 5 at slice 0"),
    ('<OME><BinaryOnly MetadataFile="x.companion.ome"/></OME>', "describes 0 images"),
    ("<OME" + "<Pixels " * 20_000, "describes 0 images"),
    (json.dumps({"shape": [2, 3, ROWS, COLUMNS]}), f"shape (2, 3, {ROWS}, {COLUMNS})"),
    (json.dumps({"shape": [DEPTH, ROWS, COLUMNS], "axes": "CYX"}), f"tifffile describes {DEPTH} channels"),
    (json.dumps({"shape": [DEPTH, ROWS, COLUMNS], "axes": "TYX"}), f"tifffile describes {DEPTH} time points"),
    (json.dumps({"shape": [40, ROWS, COLUMNS], "truncated": True}), "shape (40, "),
]  # fmt: skip


@pytest.mark.parametrize("description", GOOD, ids=range(len(GOOD)))
def test_slices_of_one_volume_are_accepted(tmp_path: Path, description: str) -> None:
    assert read_itk(build_tiff(tmp_path / "a.tif", stack(), {270: text(description)})).array.shape[2] == DEPTH


@pytest.mark.parametrize("description, words", BAD, ids=range(len(BAD)))
def test_channels_time_points_and_parts_are_refused(tmp_path: Path, description: str, words: str) -> None:
    """They were denoised as one volume, across the channels."""
    path = build_tiff(tmp_path / "a.tif", stack(), [{270: text(description)}, *[{}] * (DEPTH - 1)])
    message = refused(path)
    assert words in message
    assert "Save " in message


def test_a_very_large_imagej_stack_of_one_page_is_refused(tmp_path: Path) -> None:
    """ImageJ writes one directory for stacks beyond 4 GB; its first slice was taken for the whole."""
    words = text(imagej(images=DEPTH, slices=DEPTH))
    path = build_tiff(tmp_path / "a.tif", [stack()[0]], {270: words})
    assert f"counts {DEPTH} images, but the file has 1 TIFF pages" in refused(path)


@pytest.mark.parametrize("offset", [2**64 - 2, 2**63 - 1, 2**40])
def test_a_far_away_page_of_a_bigtiff_is_refused(tmp_path: Path, offset: int) -> None:
    path = build_tiff(tmp_path / "a.tif", stack(pages=1), big=True)
    path.write_bytes(path.read_bytes()[:8] + struct.pack("<Q", offset) + path.read_bytes()[16:])
    assert "lies outside the file" in refused(path)


def test_of_two_tags_the_first_counts_as_for_itk(tmp_path: Path) -> None:
    path = build_tiff(tmp_path / "a.tif", stack(pages=1), {260: (3, [1])})
    whole = path.read_bytes()
    first = struct.pack("<HHI", 260, 3, 1)
    second = struct.pack("<HHIHH", 262, 3, 1, 1, 0)  # 0 black again, after a tag that is made 3, a palette
    assert whole.count(first) == 1
    path.write_bytes(whole.replace(first + struct.pack("<HH", 1, 0), struct.pack("<HHIHH", 262, 3, 1, 3, 0)))
    assert path.read_bytes().count(second) == 1
    assert "palette" in refused(path)


def test_a_grey_png_with_other_chunks_is_read(tmp_path: Path) -> None:
    Image.fromarray(stack(pages=1)[0]).save(tmp_path / "a.png", dpi=(300, 300))
    whole = (tmp_path / "a.png").read_bytes()
    words = b"tEXtSource\0none"
    chunk = struct.pack(">I", len(words) - 4) + words + struct.pack(">I", zlib.crc32(words))
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk + whole[33:])
    assert np.array_equal(read_itk(tmp_path / "a.png").array, stack(pages=1)[0].T)
