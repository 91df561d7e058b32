import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adl_monai.data.integrity import count_tiff_pages
from adl_monai.errors import ScanFileError


def save_tiff(path: Path, pages: int, big: bool = False, compression: str | None = None) -> Path:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 9, (41, 23)).astype(np.uint8)) for _ in range(pages)]
    images[0].save(path, save_all=True, append_images=images[1:], big_tiff=big, compression=compression)
    return path


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits"])
def test_pages_are_counted(tmp_path: Path, big: bool, compression: str | None) -> None:
    for pages in (1, 2, 5):
        assert count_tiff_pages(save_tiff(tmp_path / "a.tif", pages, big, compression)) == pages


def test_big_endian_tiff(tmp_path: Path) -> None:
    entries = [(256, 3, 1, 2 << 16), (257, 3, 1, 1 << 16), (273, 4, 1, 62), (279, 4, 1, 2)]
    table = b"".join(struct.pack(">HHII", *entry) for entry in entries)
    content = b"MM\0*" + struct.pack(">IH", 8, len(entries)) + table + struct.pack(">I", 0) + b"\1\2"
    (tmp_path / "a.tif").write_bytes(content)
    assert count_tiff_pages(tmp_path / "a.tif") == 1
    (tmp_path / "a.tif").write_bytes(content[:-1])
    with pytest.raises(ScanFileError, match="page 1 lies outside"):
        count_tiff_pages(tmp_path / "a.tif")


@pytest.mark.parametrize("big", [False, True])
def test_every_truncation_is_seen(tmp_path: Path, big: bool) -> None:
    path = save_tiff(tmp_path / "a.tif", 3, big)
    whole = path.read_bytes()
    for length in range(8, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ScanFileError):
            count_tiff_pages(path)


def test_a_chain_that_bites_its_tail(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", 1)
    whole = bytearray(path.read_bytes())
    first = struct.unpack("<I", whole[4:8])[0]
    entries = struct.unpack("<H", whole[first : first + 2])[0]
    end = first + 2 + entries * 12
    whole[end : end + 4] = struct.pack("<I", first)
    path.write_bytes(whole)
    with pytest.raises(ScanFileError, match="earlier page"):
        count_tiff_pages(path)
