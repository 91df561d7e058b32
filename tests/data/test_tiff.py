"""What a TIFF may hold is read truly; anything else, and what is damaged, is refused in words that say what it is."""

from __future__ import annotations

import io
import json
import logging
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from adl_monai.data.tiff.file import read_tiff
from adl_monai.errors import ScanFileError, UsageError
from tests.data.tiff_files import Tags, build_tiff, ratio, text

DEPTH, ROWS, COLUMNS = 6, 7, 9
TYPES = [
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64",
]  # fmt: skip


def stack(dtype: str = "uint8", pages: int = DEPTH) -> np.ndarray:
    rng = np.random.default_rng(4)
    return rng.integers(-100 if np.dtype(dtype).kind in "if" else 0, 100, (pages, ROWS, COLUMNS)).astype(dtype)


def refused(path: Path) -> str:
    with pytest.raises(ScanFileError) as caught:
        read_tiff(path)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".")
    return message.removeprefix(str(path))


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("pages", [1, DEPTH])
@pytest.mark.parametrize("dtype", TYPES)
def test_these_kinds_are_read_truly(tmp_path: Path, dtype: str, pages: int, order: str, big: bool) -> None:
    voxels = stack(dtype, pages)
    volume = read_tiff(build_tiff(tmp_path / "a.tif", voxels, order=order, big=big))
    assert volume.dtype == np.dtype(dtype)
    assert np.array_equal(volume.array, (voxels if pages > 1 else voxels[0]).T)


@pytest.mark.parametrize("dtype, words", [
    ("complex64", "64-bit samples of format 6"), ("complex128", "128-bit samples of format 6"),
])  # fmt: skip
@pytest.mark.parametrize("pages", [1, DEPTH])
def test_other_kinds_are_refused_by_name(tmp_path: Path, dtype: str, words: str, pages: int) -> None:
    message = refused(build_tiff(tmp_path / "a.tif", stack("int8", pages).astype(dtype)))
    assert words in message
    assert "expected integers of 8, 16, 32 or 64 bits" in message


@pytest.mark.parametrize("tags, words", [
    ({258: (3, [1])}, "1-bit unsigned integers"), ({258: (3, [4])}, "4-bit unsigned integers"),
    ({258: (3, [12])}, "12-bit unsigned integers"), ({258: (3, [24])}, "24-bit unsigned integers"),
    ({258: None}, "1-bit unsigned integers"), ({339: (3, [4])}, "8-bit samples of format 4"),
    ({339: (3, [3])}, "8-bit real numbers"), ({339: (3, [5])}, "8-bit samples of format 5"),
    ({339: (8, [3])}, "8-bit real numbers"), ({277: (8, [2])}, "2 samples"),
    ({262: (3, [2])}, "2 (RGB)"), ({262: (3, [5])}, "5 (SEPARATED)"), ({262: (3, [6])}, "6 (YCBCR)"),
    ({262: (3, [3]), 320: (3, [257 * value for value in range(256)] * 3)}, "3 (PALETTE)"),
    ({262: (3, [32844])}, "32844 (LOGL)"), ({262: (3, [4711])}, "4711 (unknown)"),
    ({262: None}, "the photometric interpretation none"), ({274: (3, [6])}, "orientation 6"),
    ({32997: (4, [2])}, "several planes"), ({305: text("SI.LINE = 1")}, "several planes"),
    ({254: (4, [1])}, "thumbnail or mask"), ({254: (4, [4])}, "thumbnail or mask"), ({255: (3, [2])}, "thumbnail"),
])  # fmt: skip
@pytest.mark.parametrize("place", ["only page", "last page"])
def test_what_is_no_grey_picture_is_named(tmp_path: Path, tags: Tags, words: str, place: str) -> None:
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


@pytest.mark.parametrize("last, words", [
    (np.zeros((ROWS, COLUMNS), np.uint16), "is 9 x 7 pixels of 16-bit unsigned integers"),
    (np.zeros((ROWS, COLUMNS), np.int8), "is 9 x 7 pixels of 8-bit signed integers"),
    (np.zeros((COLUMNS, ROWS), np.uint8), "is 7 x 9 pixels of 8-bit unsigned integers"),
    (np.zeros((ROWS, COLUMNS, 3), np.uint8), "has 3 samples"),
])  # fmt: skip
def test_a_last_page_of_another_kind_is_refused(tmp_path: Path, last: np.ndarray, words: str) -> None:
    message = refused(build_tiff(tmp_path / "a.tif", [*stack(), last]))
    assert f"TIFF page {DEPTH + 1} {words}" in message
    assert "3 samples" in words or "but page 1 9 x 7 pixels of 8-bit unsigned integers" in message


@pytest.mark.parametrize("tag, value", [(262, 0), (274, 4)])
def test_a_last_page_shown_otherwise_is_refused(tmp_path: Path, tag: int, value: int) -> None:
    tags: list[Tags] = [{}] * (DEPTH - 1) + [{tag: (3, [value])}]
    assert f" {value}, " in refused(build_tiff(tmp_path / "a.tif", stack(), tags)).replace("; ", ", ")


def imagej(**counts: object) -> str:
    return "ImageJ=1.54f\n" + "".join(f"{name}={count}\n" for name, count in counts.items())


def ome(
    slices: int = DEPTH, channels: int = 1, times: int = 1, inside: str = "", images: int = 1, sizes: str = ""
) -> str:
    pixels = (
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{COLUMNS}" '
        f'SizeY="{ROWS}" SizeC="{channels}" SizeZ="{slices}" SizeT="{times}" {sizes}>{inside}</Pixels></Image>'
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
    (imagej(images=DEPTH + 4, slices=DEPTH + 4), f"{DEPTH + 4} slices, and the file has {DEPTH} TIFF pages"),
    (ome(2, channels=3), "the OME-XML describes 3 channels"), (ome(2, times=3), "the OME-XML describes 3 time points"),
    (ome(times=3).replace("<", "<OME:").replace("<OME:/", "</OME:").replace("<OME:?", "<?")
     .replace("xmlns", "xmlns:OME"), "3 time points"),
    (ome(DEPTH + 1), f"{DEPTH + 1} slices, and the file has {DEPTH} TIFF pages"), (ome(3, images=2), "2 images"),
    (ome(inside='<TiffData FirstZ="0" IFD="5"/>'), "1 slices in another order"),
    ('<OME><BinaryOnly MetadataFile="x.companion.ome"/></OME>', "describes 0 images"),
    ("<OME" + "<Pixels " * 20_000, "describes 0 images"), (ome()[:-9], "describes 0 images"),
    (json.dumps({"shape": [2, 3, ROWS, COLUMNS]}), "2 images and 3 slices"),
    (json.dumps({"shape": [DEPTH, ROWS, COLUMNS], "axes": "CYX"}), f"tifffile describes {DEPTH} channels"),
    (json.dumps({"axes": "TYX", "shape": [DEPTH, ROWS, COLUMNS]}), f"tifffile describes {DEPTH} time points"),
    (json.dumps({"shape": [40, ROWS, COLUMNS], "truncated": True}), "describes 40 slices"),
]  # fmt: skip


@pytest.mark.parametrize("description", GOOD, ids=range(len(GOOD)))
def test_slices_of_one_volume_are_accepted(tmp_path: Path, description: str) -> None:
    assert read_tiff(build_tiff(tmp_path / "a.tif", stack(), {270: text(description)})).array.shape[2] == DEPTH


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
    assert f"describes {DEPTH} slices, and the file has 1 TIFF pages" in refused(path)


@pytest.mark.parametrize("offset", [2**64 - 2, 2**63 - 1, 2**40])
def test_a_far_away_page_of_a_bigtiff_is_refused(tmp_path: Path, offset: int) -> None:
    path = build_tiff(tmp_path / "a.tif", stack(pages=1), big=True)
    path.write_bytes(path.read_bytes()[:8] + struct.pack("<Q", offset) + path.read_bytes()[16:])
    assert "lies outside the file" in refused(path)


def test_a_channel_count_in_a_second_description_counts_too(tmp_path: Path) -> None:
    """tifffile writes the user's words first and its own after them."""
    tifffile.imwrite(
        tmp_path / "a.tif", stack(), description="words", metadata={"axes": "CYX"}, photometric="minisblack"
    )
    assert f"tifffile describes {DEPTH} channels" in refused(tmp_path / "a.tif")


ENCODINGS: dict[str, dict[str, Any]] = {
    "tiles": {"tile": (16, 16)}, "deflate in tiles": {"tile": (16, 32), "compression": "zlib"},
    "strips": {"rowsperstrip": 2}, "lzw": {"compression": "lzw", "predictor": True, "rowsperstrip": 3},
    "zstd": {"compression": "zstd"}, "lzma": {"compression": "lzma"}, "packbits": {"compression": "packbits"},
    "jpeg 2000": {"compression": "jpeg2000"}, "png": {"compression": "png"},
}  # fmt: skip


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shape", [(DEPTH, 37, 41), (37, 41), (3, 1, 41), (4, 37, 1), (3, 5, 3), (4, 4, 4)])
def test_encodings_are_read_truly(tmp_path: Path, encoding: str, shape: tuple[int, ...]) -> None:
    """Tiles and newer compressions were refused."""
    voxels = np.random.default_rng(1).integers(0, 60_000, shape).astype(np.uint16)
    options = {"metadata": None, "photometric": "minisblack", **ENCODINGS[encoding]}
    tifffile.imwrite(tmp_path / "a.tif", voxels, **options)
    assert np.array_equal(read_tiff(tmp_path / "a.tif").array, voxels.T)


def test_float_predictor_and_bit_order(tmp_path: Path) -> None:
    voxels = stack("float32") / 7
    tifffile.imwrite(tmp_path / "a.tif", voxels, metadata=None, compression="zlib", predictor=True)
    assert np.array_equal(read_tiff(tmp_path / "a.tif").array, voxels.T)
    bits = np.unpackbits(stack(pages=1)[0], axis=1).reshape(ROWS, COLUMNS, 8)
    path = build_tiff(tmp_path / "b.tif", [np.packbits(bits[..., ::-1], axis=2)[..., 0]], {266: (3, [2])})
    assert np.array_equal(read_tiff(path).array, stack(pages=1)[0].T)


def test_pages_need_not_lie_in_one_run(tmp_path: Path) -> None:
    """tifffile takes the pages of an ImageJ stack to do, and reads other bytes where they do not."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stack("uint16"), imagej=True, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path, mode="r+") as file:
        tags = [file.pages[page].tags[273] for page in (1, 2)]
        for tag, offset in zip(tags, [tag.value for tag in reversed(tags)], strict=True):
            tag.overwrite(offset)
    assert np.array_equal(read_tiff(path).array, stack("uint16")[[0, 2, 1, 3, 4, 5]].T)
    assert np.array_equal(tifffile.imread(path), stack("uint16"))


def size(path: Path) -> tuple[float, ...]:
    return tuple(float(f"{one:.6g}") for one in read_tiff(path).spacing)


SIZES = [
    ({282: ratio(300, 1), 283: ratio(300, 1), 296: (3, [2])}, (0.0846667,) * 3),
    ({282: ratio(20, 1), 283: ratio(40, 1), 296: (3, [3])}, (0.5, 0.25, 0.5)),
    ({282: ratio(2, 1), 283: ratio(2, 1)}, (12.7,) * 3),
    ({282: ratio(2, 1), 283: ratio(2, 1), 296: (3, [1])}, (1,) * 3),
    ({282: ratio(2, 0), 283: ratio(2, 1), 296: (3, [3])}, (1,) * 3), ({282: (4, [7])}, (1,) * 3), ({}, (1,) * 3),
    ({270: text(imagej(unit="mm", spacing=5.0)), 282: ratio(2, 1), 283: ratio(4, 1), 296: (3, [1])}, (0.5, 0.25, 5)),
    ({270: text(imagej(unit="mm")), 282: ratio(2, 1), 283: ratio(2, 1), 296: (3, [1])}, (0.5,) * 3),
    ({270: text(imagej(unit="\\u00B5m", spacing=-0.8)), 282: ratio(5, 2), 283: ratio(5, 2)}, (4e-4, 4e-4, 8e-4)),
    ({270: (2, imagej(unit="\u00b5m", spacing=2).encode("latin-1")), 282: ratio(1, 1), 283: ratio(1, 1)},
     (1e-3, 1e-3, 2e-3)),
    ({270: text(imagej(spacing=3)), 282: ratio(10, 1), 283: ratio(10, 1), 296: (3, [3])}, (1, 1, 30)),
    ({270: text(imagej(unit="pixel", spacing=3)), 282: ratio(10, 1), 283: ratio(10, 1)}, (1,) * 3),
    ({270: text(imagej(unit="inch", spacing="much")), 282: ratio(1, 1), 283: ratio(1, 1)}, (25.4,) * 3),
    ({270: text(ome(sizes='PhysicalSizeX="0.4" PhysicalSizeY="0.5" PhysicalSizeZ="0.9"'))}, (4e-4, 5e-4, 9e-4)),
    ({270: text(ome(sizes='PhysicalSizeX="2" PhysicalSizeXUnit="mm" PhysicalSizeY="1"'))}, (2, 1e-3, 2)),
    ({270: text(ome(sizes='PhysicalSizeX="1" PhysicalSizeY="1" PhysicalSizeXUnit="\u00b5m" PhysicalSizeYUnit="\u03bcm" '
                          'PhysicalSizeZ="3" PhysicalSizeZUnit="nm"'))}, (1e-3, 1e-3, 3e-6)),
    ({270: text(ome(sizes='PhysicalSizeX="1" PhysicalSizeXUnit="pixel"')), 282: ratio(1, 1), 283: ratio(1, 1),
      296: (3, [3])}, (10,) * 3),
    ({270: text(ome(sizes='PhysicalSizeX="NaN" PhysicalSizeY="-1" PhysicalSizeZ="INF"'))}, (1,) * 3),
]  # fmt: skip


@pytest.mark.parametrize("tags, expected", SIZES, ids=range(len(SIZES)))
def test_voxel_sizes(tmp_path: Path, tags: Tags, expected: tuple[float, ...]) -> None:
    """The unknown distance of slices counted as 1 mm beside pixels of 0.08 mm, so a 2D model was taken."""
    assert size(build_tiff(tmp_path / "a.tif", stack(), [tags, *[{}] * (DEPTH - 1)])) == expected


def test_voxel_sizes_as_tifffile_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    words: dict[str, Any] = {"spacing": 0.8, "unit": "um", "axes": "ZYX"}
    tifffile.imwrite(path, stack(), imagej=True, resolution=(2.5, 2.5), metadata=words)
    assert size(path) == (4e-4, 4e-4, 8e-4)
    words = {"axes": "ZYX", "PhysicalSizeX": 0.4, "PhysicalSizeY": 0.4, "PhysicalSizeZ": 0.9}
    tifffile.imwrite(path, stack(), ome=True, metadata=words)
    assert size(path) == (4e-4, 4e-4, 9e-4)


@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (2, (COLUMNS - 1, 0)), (4, (0, ROWS - 1)),
                                                 (3, (COLUMNS - 1, ROWS - 1))])  # fmt: skip
def test_turned_pixels_lie_where_they_are_shown(tmp_path: Path, orientation: int, corner: tuple[int, int]) -> None:
    path = build_tiff(tmp_path / "a.tif", stack(), {274: (3, [orientation])})
    volume = read_tiff(path)
    assert np.array_equal(volume.array, stack().T)
    assert np.allclose(volume.affine @ [*corner, 0, 1], [0, 0, 0, 1])
    inner = [COLUMNS // 2, ROWS // 2, 3, 1]
    assert np.allclose(volume.affine @ inner, np.diag([-1, -1, 1, 1]) @ inner)


def outcome(path: Path) -> tuple[str, np.ndarray]:
    """What a file is refused with, or its voxels."""
    try:
        return "", read_tiff(path).array
    except ScanFileError:
        return refused(path), np.empty(0)


def whole_files() -> dict[str, bytes]:
    """Files of several kinds and programs, of the same voxels."""
    made, voxels = {}, np.random.default_rng(0).integers(0, 60_000, (5, 23, 31)).astype(np.uint16)
    kinds: dict[str, dict[str, Any]] = {
        "imagej": {"imagej": True}, "ome": {"ome": True}, "shaped": {}, "big": {"bigtiff": True, "byteorder": ">"},
        "tiles": {"tile": (16, 16), "compression": "zlib"}, "zstd": {"compression": "zstd"},
    }  # fmt: skip
    for kind, options in kinds.items():
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, voxels, metadata={"axes": "ZYX"}, **options)
        made[kind] = buffer.getvalue()
    for compression in ("raw", "tiff_lzw"):
        buffer, pages = io.BytesIO(), [Image.fromarray(page) for page in voxels]
        pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], compression=compression)
        made[compression] = buffer.getvalue()
    return made


@pytest.mark.parametrize("kind", ["imagej", "ome", "shaped", "big", "tiles", "zstd", "raw", "tiff_lzw"])
def test_every_truncation_is_seen(tmp_path: Path, kind: str) -> None:
    """tifffile reads what is left of a chain of pages, and tells its log."""
    path, whole = tmp_path / "a.tif", whole_files()[kind]
    path.write_bytes(whole)
    voxels, told = read_tiff(path).array, 0
    for length in {*range(0, len(whole), 97), *range(len(whole) - 40, len(whole))}:
        path.write_bytes(whole[:length])
        message, found = outcome(path)
        told += bool(message)
        if not message:  # the file ended with words that no voxel needs
            assert length > len(whole) - 40
            assert np.array_equal(found, voxels)
    assert told > 80


def test_a_file_cut_within_the_last_offset_is_refused(tmp_path: Path) -> None:
    """Whether another page follows was in the bytes that are missing."""
    whole = build_tiff(tmp_path / "a.tif", stack(pages=1)).read_bytes()
    for missing in (1, 2, 3, 4):
        (tmp_path / "a.tif").write_bytes(whole[:-missing])
        assert "cut short" in refused(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["tiles", "big"])
def test_flipped_bits_end_in_words(tmp_path: Path, kind: str) -> None:
    path, whole, rng = tmp_path / "a.tif", whole_files()[kind], np.random.default_rng(3)
    path.write_bytes(whole)
    voxels = read_tiff(path).array
    for byte in rng.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[byte] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        message, found = outcome(path)
        assert message or kind == "big" or np.array_equal(found, voxels)  # deflate has checksums


@pytest.mark.parametrize("pages", [1, 3, 150])
def test_a_chain_that_bites_its_tail(tmp_path: Path, pages: int) -> None:
    """Beyond 100 pages tifffile would follow it for hours."""
    path = build_tiff(tmp_path / "a.tif", stack(pages=pages))
    whole = bytearray(path.read_bytes())
    whole[-4:] = whole[4:8]
    path.write_bytes(whole)
    assert f"TIFF page {pages + 1} points back to an earlier page" in refused(path)


@pytest.mark.parametrize("tags, words", [
    ({339: (3, [2]), 258: (13, [8])}, ""),
    ({339: (99, [2])}, "tags [339]"), ({317: (0, [2])}, "tags [317]"),
    ({258: (99, [16]), 266: (99, [2])}, "[258, 266]"),
])  # fmt: skip
def test_a_tag_that_tifffile_would_drop_is_named(tmp_path: Path, tags: Tags, words: str) -> None:
    """Without a word, signed integers were unsigned, and differences values."""
    path = build_tiff(tmp_path / "a.tif", stack(pages=1), tags)
    if words:
        assert words in refused(path)
    else:
        assert read_tiff(path).dtype == np.int8


@pytest.mark.parametrize("tags, words", [
    ({279: (4, [62])}, "claims 63 bytes of pixels and has 62"), ({279: (4, [0])}, "outside the file"),
    ({273: (4, [4000])}, "outside the file"), ({278: (4, [3])}, "1 strips or tiles; expected 3"),
    ({256: (4, [0])}, "expected one at least"), ({273: None}, "0 strips or tiles"),
    ({259: (3, [3])}, "black and white"),
    ({256: (4, [2**20]), 257: (4, [2**20]), 278: (4, [2**20]), 259: (3, [8])}, f"claims {2**40} bytes of pixels"),
    ({273: None, 279: None, 278: None, 322: (3, [16]), 323: (3, [16]), 324: (4, [8, 9, 9, 9]), 325: (4, [9] * 4)},
     "4 strips or tiles; expected 1"),
    ({259: (3, [4711])}, "4711"),
])  # fmt: skip
def test_pixels_that_are_not_there_are_refused(tmp_path: Path, tags: Tags, words: str) -> None:
    """tifffile fills what no strip covers with anything."""
    message = refused(build_tiff(tmp_path / "a.tif", stack(pages=1), tags))
    assert words in message
    assert "damaged" in message


def test_nan_is_refused_with_its_count(tmp_path: Path) -> None:
    voxels = stack("float32")
    voxels[2, 3, 1:4] = np.nan
    assert "3 of 378 voxels are NaN" in refused(build_tiff(tmp_path / "a.tif", voxels))


def test_foreign_content_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_text("this is a text file\n" * 20)
    assert "not a TIFF file" in refused(path)
    path.write_bytes(b"II*\0\0\0\0\0" + bytes(20))
    assert "page 1 lies outside" in refused(path)
    path.write_bytes(b"")
    assert "empty" in refused(path)
    with pytest.raises(UsageError, match="no such file"):
        read_tiff(tmp_path / "none.tif")


def test_other_files_are_not_opened(tmp_path: Path) -> None:
    """OME-XML may name files; tifffile would follow it wherever it points."""
    build_tiff(tmp_path / "other.tif", stack(pages=2))
    inside = '<TiffData IFD="0" FirstZ="0" PlaneCount="2"><UUID FileName="../other.tif">urn:uuid:1</UUID></TiffData>'
    (tmp_path / "in").mkdir()
    path = build_tiff(tmp_path / "in" / "a.tif", stack(), [{270: text(ome(inside=inside))}, *[{}] * (DEPTH - 1)])
    assert np.array_equal(read_tiff(path).array, stack().T)


def test_nothing_on_stderr_and_no_simpleitk(tmp_path: Path) -> None:
    whole = build_tiff(tmp_path / "a.tif", stack()).read_bytes()
    (tmp_path / "bad_cut.tif").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bad_text.tif").write_text("this is a text file\n" * 20)
    build_tiff(tmp_path / "bad_strip.tif", stack(pages=1), {278: (4, [3])})
    Image.fromarray(stack(pages=1)[0]).save(tmp_path / "tags.tif", tiffinfo={50838: 5})
    program = (
        "import sys; from pathlib import Path; from adl_monai.data.io import read_volume\n"
        "from adl_monai.errors import AdlError\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: read_volume(path)\n"
        "    except AdlError: assert path.stem.startswith('bad'), path\n"
        "    else: assert not path.stem.startswith('bad'), path\n"
        "assert 'SimpleITK' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert logging.getLogger("tifffile").level == logging.NOTSET
