"""PNG, JPEG and BMP: grey pixels are read truly or refused in words, and a PNG keeps the size of its pixels."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adl_monai.data.io import read_volume, write_volume
from adl_monai.data.pictures import plan_picture_from_affine, read_picture
from adl_monai.errors import OutputError, ScanFileError, UsageError

ROWS, COLUMNS = 37, 61


def pixels(dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(2).integers(0, np.iinfo(dtype).max, (ROWS, COLUMNS)).astype(dtype)


def save(path: Path, stored: np.ndarray, **options: object) -> Path:
    Image.fromarray(stored).save(path, **options)
    return path


def denoised_copy(path: Path) -> Path:
    volume, copy = read_volume(path), path.with_name(f"copy{path.suffix}")
    assert write_volume(copy, volume.array, like=path, affine=volume.affine) == 0
    return copy


def chunk(path: Path, name: bytes) -> bytes | None:
    content = path.read_bytes()
    assert content.count(name) <= 1
    place = content.find(name)
    return None if place < 0 else content[place + 4 : place + 4 + int.from_bytes(content[place - 4 : place], "big")]


@pytest.mark.parametrize("name, dtype", [("a.png", "uint8"), ("a.png", "uint16"), ("A.PNG", "uint8")])
def test_pngs_round_trip(tmp_path: Path, name: str, dtype: str) -> None:
    path = save(tmp_path / name, pixels(dtype))
    volume, again = read_picture(path), read_picture(denoised_copy(path))
    assert volume.format == "png"
    for found in (volume, again):
        assert np.array_equal(found.array, pixels(dtype).T)
        assert found.dtype == np.dtype(dtype)
        assert np.array_equal(found.affine, np.diag([-1.0, -1, 1, 1]))
    assert chunk(tmp_path / f"copy{path.suffix}", b"pHYs") is None


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_resolution_is_kept_and_is_the_pixel_size(tmp_path: Path, dtype: str) -> None:
    """300 dots an inch went in and none came out, but a scale of 1 that nobody had given."""
    path = save(tmp_path / "a.png", pixels(dtype), dpi=(300, 150))
    copy = denoised_copy(path)
    assert chunk(copy, b"pHYs") == chunk(path, b"pHYs") is not None
    assert chunk(copy, b"sCAL") is None
    assert read_picture(copy).spacing == pytest.approx((25.4 / 300, 25.4 / 150), rel=1e-4)


@pytest.mark.parametrize("words", [b"tEXtSource\0none", b"pHYs\0\0\0\2\0\0\0\3\0"])  # the latter: of no unit
def test_other_chunks_do_no_harm(tmp_path: Path, words: bytes) -> None:
    whole = save(tmp_path / "a.png", pixels()).read_bytes()
    more = struct.pack(">I", len(words) - 4) + words + struct.pack(">I", zlib.crc32(words))
    (tmp_path / "a.png").write_bytes(whole[:33] + more + whole[33:])
    assert np.array_equal(read_picture(tmp_path / "a.png").array, pixels().T)
    assert read_picture(tmp_path / "a.png").spacing == (1, 1)


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.bmp"])
def test_photographs_are_read_only(tmp_path: Path, name: str) -> None:
    stored = (np.add.outer(np.arange(48), np.arange(32)) * 2).astype(np.uint8)  # 48 rows, 32 columns
    bmp = name == "a.bmp"
    path = save(tmp_path / name, stored, **({} if bmp else {"quality": 95, "dpi": (300, 300)}))
    volume = read_volume(path)
    assert volume.format == ("bmp" if bmp else "jpeg")
    assert volume.array.shape == (32, 48)
    assert np.abs(volume.array - stored.T).max() <= (0 if bmp else 3)
    assert np.array_equal(volume.affine, np.diag([-1.0, -1, 1, 1]))
    with pytest.raises(OutputError, match="cannot write"):
        write_volume(tmp_path / f"copy{path.suffix}", volume.array, like=path, affine=volume.affine)
    whole = path.read_bytes()
    for length in (0, 1, 60, len(whole) // 2, len(whole) - 1 if bmp else len(whole) - 20):
        path.write_bytes(whole[:length])
        with pytest.raises(ScanFileError):
            read_picture(path)


@pytest.mark.parametrize("name, mode", [
    ("a.png", "RGB"), ("a.png", "P"), ("a.png", "1"), ("a.png", "LA"), ("a.png", "RGBA"), ("a.jpg", "RGB"),
    ("a.jpg", "CMYK"), ("a.bmp", "RGB"), ("a.bmp", "1"),
])  # fmt: skip
def test_other_pixels_are_refused(tmp_path: Path, name: str, mode: str) -> None:
    Image.fromarray(pixels()).convert(mode).save(tmp_path / name)
    with pytest.raises(ScanFileError, match=rf"pixels are {mode}; expected one grey value of 8 or 16 bits"):
        read_picture(tmp_path / name)


def test_transparency_and_several_pictures_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels(), transparency=7)
    with pytest.raises(ScanFileError, match="pixels are L with transparency"):
        read_picture(tmp_path / "a.png")
    save(tmp_path / "b.png", pixels(), save_all=True, append_images=[Image.fromarray(pixels()[::-1].copy())])
    with pytest.raises(ScanFileError, match="one picture"):
        read_picture(tmp_path / "b.png")


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_truncated_files_are_refused(tmp_path: Path, dtype: str) -> None:
    whole = save(tmp_path / "a.png", pixels(dtype), dpi=(300, 300)).read_bytes()
    for length in {*range(0, len(whole) - 4, 23), *range(len(whole) - 40, len(whole) - 4)}:
        (tmp_path / "a.png").write_bytes(whole[:length])
        with pytest.raises(ScanFileError) as caught:
            read_picture(tmp_path / "a.png")
        assert "\n" not in str(caught.value)


def test_flipped_bits_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", pixels("uint16"), dpi=(300, 300))
    whole, rng = path.read_bytes(), np.random.default_rng(3)
    for byte in rng.integers(0, len(whole) - 12, 200):
        damaged = bytearray(whole)
        damaged[byte] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ScanFileError):
            read_picture(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_foreign_content_and_missing_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_text("this is a text file\n" * 20)
    with pytest.raises(ScanFileError) as caught:
        read_picture(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"")
    with pytest.raises(ScanFileError, match="empty"):
        read_picture(path)
    with pytest.raises(UsageError, match="no such file"):
        read_picture(tmp_path / f"none{suffix}")


def test_a_new_png_keeps_the_pixel_size_and_says_what_is_lost(
    tmp_path: Path, oblique: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """PNG counts pixels a metre, in whole numbers."""
    path, values = tmp_path / "a.png", pixels().T.astype(np.float32)
    plan_picture_from_affine(path, values, np.diag([-0.5, -0.75, 2, 1]), "uint8").save(path)
    assert read_picture(path).spacing == pytest.approx((0.5, 1000 / 1333), rel=1e-12)
    assert not caplog.text
    plan_picture_from_affine(path, values, oblique, "uint8").save(path)
    assert "a.png: .png files keep no position" in caplog.text
    sizes = np.linalg.norm(oblique[:3, :2], axis=0)
    assert read_picture(path).spacing == pytest.approx(1000 / np.rint(1000 / sizes), rel=1e-12)
    assert np.array_equal(read_picture(path).array, values)


def test_what_a_png_cannot_hold_is_refused(tmp_path: Path, oblique: np.ndarray) -> None:
    flat, deep = np.zeros((6, 5), np.float32), np.zeros((6, 5, 4), np.float32)
    for values, affine, dtype, words in (
        (flat, oblique, "int16", "png files hold uint8, uint16; got int16"),
        (deep, oblique, "uint8", "cannot hold shape"),
        (flat, np.zeros((4, 4)), "uint8", "singular"),
    ):
        with pytest.raises(OutputError, match=words):
            plan_picture_from_affine(tmp_path / "a.png", values, affine, dtype)
    path = save(tmp_path / "a.png", pixels())
    with pytest.raises(OutputError, match="does not fit"):
        write_volume(tmp_path / "b.png", flat, like=path, affine=np.eye(4))
