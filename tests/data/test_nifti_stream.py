"""NIfTI volumes read and written box by box."""

from __future__ import annotations

import gzip
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adl_monai.data.io import write_volume
from adl_monai.data.nifti import stream as nifti_stream
from adl_monai.data.nifti.file import peek_header, read_nifti
from adl_monai.data.nifti.sink import nifti_sink
from adl_monai.data.nifti.stream import open_nifti_source
from adl_monai.data.normalization import MAX_SAMPLED_VOXELS, robust_range
from adl_monai.data.overlap import ReadAhead, WriteBehind
from adl_monai.data.raw_voxels import Box, lengths
from adl_monai.errors import AdlError, OutputError, ScanFileError, UsageError

from .conftest import build_nifti, oblique_affine
from .test_nifti import FIELD_FAULTS

Builder = Callable[..., Path]
SHAPE = (13, 18, 23)


def voxels(dtype: str = "int16", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 250, shape).astype(dtype)


def box(*limits: int) -> Box:
    return tuple(slice(*limits[index : index + 2]) for index in (0, 2, 4))  # type: ignore[return-value]


WHOLE = box(0, 13, 0, 18, 0, 23)
BOXES = [WHOLE, box(0, 13, 0, 18, 4, 9), box(0, 13, 3, 7, 22, 23), box(2, 5, 3, 18, 0, 23), box(12, 13, 0, 18, 7, 8)]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a few planes were as much as memory could take."""
    monkeypatch.setattr(nifti_stream, "_PIECE", 1000)
    monkeypatch.setattr("adl_monai.data.raw_voxels._MOST_VOXELS", 500)
    monkeypatch.setattr("adl_monai.data.nifti.sink._PIECE", 1000)


@pytest.mark.parametrize("name", ["a.nii", "A.NII.GZ"])
@pytest.mark.parametrize("order, scale", [("<", (1.0, 0.0)), (">", (0.37, -1024.0))])
@pytest.mark.parametrize("dtype", ["int16", "float64"])
@pytest.mark.usefixtures("small_pieces")
def test_boxes_hold_the_values_of_the_volume(
    nifti: Builder, tmp_path: Path, name: str, order: str, scale: tuple[float, float], dtype: str
) -> None:
    path = nifti(voxels(dtype), name, order=order, scale=scale, extension=b"some bytes")
    expected = read_nifti(path)
    with open_nifti_source(path, tmp_path / "out.nii") as source:
        assert source.shape == SHAPE
        assert (source.lowest, source.highest) == (expected.array.min(), expected.array.max())
        assert np.array_equal(source.header.affine, expected.affine)
        for part in BOXES:
            values = source.read(part)
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, expected.array[part])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shape", [SHAPE, (130, 131, 127), (1, 2999, 800), (2500, 1, 1000)], ids=str)
@pytest.mark.parametrize("kind", ["noise", "sparse", "signed zeros"])
def test_the_range_is_that_of_the_whole_volume(tmp_path: Path, shape: tuple[int, int, int], kind: str) -> None:
    rng = np.random.default_rng(0)
    stored = rng.normal(0, 100, shape).astype(np.float32)
    if kind == "sparse":
        stored[rng.random(shape) > 1e-3] = 7  # the percentiles coincide
    elif kind == "signed zeros":
        stored = np.where(rng.random(shape) > 0.5, 0.0, -0.0).astype(np.float32)
        stored[rng.random(shape) > 0.9] = 1
    assert shape == SHAPE or stored.size > MAX_SAMPLED_VOXELS
    path = build_nifti(tmp_path / "scan.nii", stored)
    with open_nifti_source(path, tmp_path / "out.nii") as source:
        for percentiles in ((0.5, 99.5), (0.0, 100.0), (20.0, 45.5)):
            found, expected = source.robust_range(*percentiles), robust_range(stored, *percentiles)
            assert np.array(found).tobytes() == np.array(expected).tobytes()


def refusal(read: Callable[[], Any]) -> tuple[type[AdlError], str]:
    with pytest.raises(AdlError) as caught:
        read()
    return type(caught.value), str(caught.value)


def stream(path: Path) -> None:
    with open_nifti_source(path, path.with_name("out.nii")):
        raise AssertionError(f"{path} was opened")


BROKEN = [
    np.array([[[np.nan, 1, np.inf]]], np.float32),
    np.array([[[1e300, 1, 2]]], np.float64),
    np.ones((3, 4, 5), np.complex64),
    np.ones((3, 4, 5, 2), np.int16),
]


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_what_is_refused_in_memory_is_refused_in_the_same_words(nifti: Builder, name: str) -> None:
    makers: list[dict[str, Any]] = [{"stored": voxels(), "fields": fields} for fields, _ in FIELD_FAULTS]
    for options in [*makers, *({"stored": stored} for stored in BROKEN)]:
        path = nifti(name=name, **options)
        assert refusal(lambda path=path: stream(path)) == refusal(lambda path=path: read_nifti(path)), options
        assert [child.name for child in path.parent.iterdir()] == [name]


@pytest.mark.usefixtures("small_pieces")
def test_faults_are_counted_over_all_pieces(nifti: Builder) -> None:
    stored = voxels("float32")
    stored[0, 0, ::5] = np.nan
    assert refusal(lambda: stream(nifti(stored)))[1].count("5 of 5382 voxels are NaN")
    stored = voxels("float64")
    stored[0, 0, ::5] = 1e300
    assert refusal(lambda: stream(nifti(stored)))[1].count(" 5 values exceed the range of float32")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_truncation_and_additions_at_every_kind_of_place(nifti: Builder, name: str) -> None:
    path = nifti(voxels(), name)
    whole = path.read_bytes()
    for length in (0, 1, 4, 200, 348, 351, 353, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert refusal(lambda: stream(path)) == refusal(lambda: read_nifti(path))
    inflated = gzip.decompress(whole) if name.endswith(".gz") else whole
    for odd in (inflated[:-50], inflated + b"\1" * 60):
        path.write_bytes(gzip.compress(odd) if name.endswith(".gz") else odd)
        assert refusal(lambda: stream(path)) == refusal(lambda: read_nifti(path))


def test_flipped_bits_of_a_gz_are_refused_or_change_nothing(tmp_path: Path) -> None:
    path = build_nifti(tmp_path / "scan.nii.gz", voxels(shape=(9, 10, 7)), oblique_affine(), scale=(0.5, 3.0))
    whole, expected, refused = path.read_bytes(), read_nifti(path).array, 0
    for bit in np.random.default_rng(7).choice(len(whole) * 8, 150, replace=False):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        try:
            with open_nifti_source(path, tmp_path / "out.nii") as source:
                assert np.array_equal(source.read(box(0, 9, 0, 10, 0, 7)), expected)
        except ScanFileError:
            refused += 1
    assert refused >= 140


def test_no_such_file_and_2d(nifti: Builder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        stream(tmp_path / "none.nii")
    with pytest.raises(ValueError, match="three axes"):
        stream(nifti(voxels(shape=(5, 6))))


def test_a_file_that_shrinks_meanwhile_is_noticed(nifti: Builder, tmp_path: Path) -> None:
    path = nifti(voxels())
    with open_nifti_source(path, tmp_path / "out.nii") as source:
        os.truncate(path, 3000)
        with pytest.raises(ScanFileError, match="became shorter"):
            source.read(WHOLE)


ORDERS = {
    "in order": [box(0, 13, 0, 18, start, min(start + 5, 23)) for start in range(0, 23, 5)],
    "columns": [box(i, j, 0, 18, k, k + 1) for i, j in ((0, 4), (4, 13)) for k in range(23)],
    "bricks": [box(0, 13, j, j + 9, *k) for k in ((20, 23), (0, 20)) for j in (9, 0)],
}


def write(path: Path, source: Path, values: np.ndarray, order: str, dtype: str = "same", **options: Any) -> int:
    with nifti_sink(path, source, peek_header(source), dtype, **options) as sink:
        for part in ORDERS[order]:
            sink.write(part, np.ascontiguousarray(values[part]))
    return sink.clipped


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", list(ORDERS))
@pytest.mark.parametrize(
    "stored, byte_order, dtype", [("uint8", "<", "same"), ("int16", ">", "same"), ("int16", ">", "float32")]
)
@pytest.mark.usefixtures("small_pieces")
def test_the_file_is_that_of_the_whole_volume(
    nifti: Builder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    suffix: str,
    order: str,
    stored: str,
    byte_order: str,
    dtype: str,
) -> None:
    source = nifti(
        voxels(stored), affine=oblique_affine(), codes=(4, 2), scale=(0.5, 3.0), units=18, order=byte_order,
        extension=b"kept",
    )  # fmt: skip
    values = read_nifti(source).array * np.float32(1.1) - 3
    expected, found = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    with caplog.at_level(logging.WARNING, "adl_monai"):
        clipped = write_volume(expected, values, like=source, affine=read_nifti(source).affine, dtype=dtype)
        assert write(found, source, values, order, dtype) == clipped
    inflate = gzip.decompress if suffix == ".nii.gz" else bytes
    assert inflate(found.read_bytes()) == inflate(expected.read_bytes())
    assert (clipped > 0) is (stored == "uint8")
    said = [record.getMessage() for record in caplog.records if "saturated" in record.getMessage()]
    assert said[1:] == [line.replace("a.nii", "b.nii") for line in said[:1]]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", list(ORDERS))
def test_nothing_is_left_of_a_file_that_was_not_finished(
    nifti: Builder, tmp_path: Path, suffix: str, order: str
) -> None:
    source = nifti(voxels())
    values, first = read_nifti(source).array.copy(), ORDERS[order][0]

    def write_first(error: BaseException | None = None) -> None:
        with nifti_sink(tmp_path / f"out{suffix}", source, peek_header(source)) as sink:
            sink.write(first, values[first])
            if error is not None:
                raise error

    with pytest.raises(SystemExit):
        write_first(SystemExit(143))
    with pytest.raises(ValueError, match="of 5382 voxels were written"):
        write_first()
    values[12, 17, 22] = np.inf
    with pytest.raises(OutputError, match="are NaN or infinite"):
        write(tmp_path / f"out{suffix}", source, values, order)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii"]


def test_boxes_that_do_not_fit_are_refused(nifti: Builder, tmp_path: Path) -> None:
    source = nifti(voxels())
    first = box(0, 13, 0, 18, 0, 1)
    for part in (box(0, 13, 0, 18, 2, 3), box(0, 12, 0, 18, 1, 2)):
        with (  # noqa: PT012
            pytest.raises(ValueError, match="from plane 1 on"),
            nifti_sink(tmp_path / "o.nii.gz", source, peek_header(source)) as sink,
        ):
            sink.write(first, np.zeros(lengths(first), np.float32))
            sink.write(part, np.zeros(lengths(part), np.float32))
    with (
        pytest.raises(ValueError, match="for a box of"),
        nifti_sink(tmp_path / "o.nii", source, peek_header(source)) as s,
    ):
        s.write(box(0, 13, 0, 18, 0, 1), np.zeros((13, 18, 2), np.float32))
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
def test_a_disk_without_room_is_noticed_beforehand(
    nifti: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A scan that is small when compressed, and an output or an inflated copy that is not."""
    source = nifti(np.zeros((50, 60, 70), np.int16), "scan.nii.gz")
    usage = type("Usage", (), {"free": 400_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="has 400,000 bytes left and this needs at least 420,"):
        stream(source)
    part = box(0, 25, 0, 60, 0, 1)
    wrote = False
    with (  # noqa: PT012
        pytest.raises(OutputError, match="420,"),
        nifti_sink(tmp_path / name, source, peek_header(source)) as sink,
    ):
        assert name == "out.nii.gz", "it was opened"  # there, the first box says that raw voxels need a place
        sink.write(part, np.zeros(lengths(part), np.float32))
        wrote = True
    assert not wrote
    assert list(tmp_path.iterdir()) == [source]


def test_reading_ahead_asks_for_each_box_once_and_follows_any_order() -> None:
    asked: list[tuple[Box, int]] = []

    def read(part: Box) -> Box:
        asked.append((part, threading.get_ident()))
        return part

    def run(planes: list[tuple[int, int]]) -> list[tuple[Box, int]]:
        asked.clear()
        with ReadAhead(read, 40) as ahead:
            for start, stop in planes:
                part = box(0, 5, 0, 6, start, stop)
                assert ahead(part) == part
        return asked

    overlapping = [(0, 11), (7, 19), (15, 27), (23, 35), (31, 40)]
    found = run(overlapping)
    assert [(part[2].start, part[2].stop) for part, _ in found] == overlapping
    here = threading.get_ident()
    assert [thread == here for _, thread in found] == [True, True, True, False, False]
    assert len(run([(0, 8), (8, 16), (16, 24), (3, 9), (24, 32)])) == 6, "one wrong guess costs one box"
    assert len(run([(8, 16), (8, 16), (0, 8)])) == 3


def test_what_a_thread_raises_comes_out() -> None:
    def fail(*arguments: Any) -> None:
        raise OSError("no room")

    threads = set(threading.enumerate())

    with pytest.raises(OSError, match="no room"), WriteBehind(fail) as behind:  # noqa: PT012
        behind(WHOLE, 1)
        behind(WHOLE, 2)
    with pytest.raises(OSError, match="no room"), WriteBehind(fail) as behind:  # noqa: PT012
        behind(WHOLE, 1)
        behind.wait()
    assert set(threading.enumerate()) == threads
