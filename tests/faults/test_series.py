"""Rows 24 to 52 of the table in tests/README.md: DICOM files and series, by the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLSLossless, RLELossless

from adl_monai.data.io import read_volume
from tests.data.conftest import build_dicom, build_series

from .conftest import Command, Refused

EVEN = [0.0, 2.5, 5.0, 7.5, 10.0]
SECRETS = ("SECRET", "OTHER")
Change = Callable[[list[Path]], object]


def real_file(name: str) -> Path:
    return Path(str(get_testdata_file(name)))


def edit(path: Path, **elements: Any) -> None:
    """Set, or remove when None, elements of a file."""
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)


def third(**elements: Any) -> Change:
    """Edits the slice in the middle."""
    return lambda paths: edit(paths[2], **elements)


def every(**elements: Any) -> Change:
    return lambda paths: [edit(path, **elements) for path in paths]


def tilt(paths: list[Path]) -> None:
    for index, path in enumerate(paths):
        edit(path, ImagePositionPatient=[-10, 20 + 0.67 * index, 2.5 * index])


def second_time_point(paths: list[Path]) -> None:
    build_series(paths[0].parent / "later", EVEN, seed=1)
    for path in (paths[0].parent / "later").iterdir():
        path.rename(paths[0].parent / f"later_{path.name}")


def localizer(paths: list[Path]) -> None:
    build_dicom(
        paths[0].parent / "localizer.dcm", np.ones((6, 5), np.int16), ImageOrientationPatient=[0, 1, 0, 0, 0, -1]
    )


def other_pixels(paths: list[Path]) -> None:
    build_dicom(paths[0].parent / "x.dcm", np.ones((6, 5), np.int16), ImagePositionPatient=[-10.0, 20.0, 5.0])


def larger_image(paths: list[Path]) -> None:
    build_dicom(paths[0].parent / "x.dcm", np.ones((7, 5), np.int16), ImagePositionPatient=[-10.0, 20.0, 12.5])


def half(paths: list[Path]) -> None:
    paths[2].write_bytes(paths[2].read_bytes()[: paths[2].stat().st_size - 30])


def unreadable_compression(paths: list[Path]) -> None:
    dataset = pydicom.dcmread(paths[2])
    dataset.PixelData = encapsulate([b"\0" * 40 + b"\xff\xd9"])
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    dataset.save_as(paths[2])


def two_series(paths: list[Path]) -> None:
    build_dicom(paths[0].parent / "x.dcm", np.ones((6, 5), np.int16), SeriesInstanceUID="1.2.9", SeriesNumber=99)


ORIENTATION = "ImageOrientationPatient"
REFUSED: list[tuple[str, int, Change, list[str]]] = [
    ("24", 4, lambda paths: paths[2].unlink(), ["slice missing: 5.000 mm", "001.dcm and 003.dcm", "2.500 mm apart"]),
    (
        "25",
        2,
        two_series,
        ["several series", "SeriesNumber 99, CT, 6 x 5 pixels, 1 images, 1.2.9", "5 images, 1.2.3.4", "--series"],
    ),
    ("26", 4, other_pixels, ["002.dcm and x.dcm differ but lie at one place", "folder of its own"]),
    ("27", 4, third(ImagePositionPatient=[-10, 20, 5.9]), ["uneven slices: 3.400 mm", "one distance", "Resample"]),
    ("28", 4, tilt, ["15.0 degrees", "gantry", "Resample"]),
    ("29", 4, second_time_point, ["lie at one place", "time points", "folder of its own"]),
    ("30", 4, localizer, ["localizer.dcm", ORIENTATION, "localizer may be among them", "folder of their own"]),
    ("31", 4, larger_image, ["x.dcm", "Rows and Columns", "(6, 5) and (7, 5)", "one volume"]),
    ("33-position", 4, third(ImagePositionPatient=None), ["002.dcm", "ImagePositionPatient is missing"]),
    ("33-spacing", 4, third(PixelSpacing=None), ["002.dcm", "PixelSpacing is missing"]),
    ("34-zero", 4, third(ImageOrientationPatient=[0] * 6), ["002.dcm", ORIENTATION, "not two perpendicular unit"]),
    ("34-skew", 4, third(ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]), [ORIENTATION, "not two perpendicular"]),
    ("35", 4, third(PatientID="OTHER-ID"), ["differ in PatientID", "002.dcm", "folder of their own"]),
    ("37", 2, lambda paths: [path.write_text("junk") for path in paths], ["no DICOM image among 5 files"]),
    ("40", 3, unreadable_compression, ["002.dcm", "JPEG-LS Lossless", "cannot be decoded"]),
    ("43-zero", 3, third(RescaleSlope=0), ["002.dcm", "RescaleSlope is 0", "Correct the header"]),
    ("43-huge", 3, third(RescaleSlope="1e300"), ["002.dcm", "exceed the range of float32", "correct its header"]),
    ("47-short", 3, third(PixelData=b"\0" * 40), ["002.dcm", "PixelData holds 40 bytes of 60", "cut short"]),
    ("47-long", 3, every(Rows=5), ["000.dcm", "holds 60 bytes", "claims 50", "header is damaged"]),
    ("48-frames", 3, third(NumberOfFrames=7), ["002.dcm", "7 frames"]),
    ("48-truncated", 3, half, ["002.dcm"]),
    ("49-colour", 3, every(PhotometricInterpretation="RGB", SamplesPerPixel=3), ["RGB", "expected grey"]),
    ("49-palette", 3, every(PhotometricInterpretation="PALETTE COLOR"), ["PALETTE COLOR", "expected grey"]),
]


@pytest.mark.parametrize(
    "code, change, words", [case[1:] for case in REFUSED], ids=[f"row_{case[0]}" for case in REFUSED]
)
def test_a_bad_series_is_refused(tmp_path: Path, refused: Refused, code: int, change: Change, words: list[str]) -> None:
    series = tmp_path / "series"
    change(build_series(series, EVEN))
    message = refused(code, ["series", *words], "infer", series, "-o", tmp_path / "out.nii.gz")
    assert not any(secret in message for secret in SECRETS)


def denoised(command: Command, series: Path, *options: object) -> tuple[np.ndarray, str]:
    """The series at strength 0, which is the series itself, and what was said."""
    output = series.parent / "out.nii.gz"
    outcome = command("infer", series, "-o", output, "--strength", "0", "--overwrite", *options)
    assert outcome.code == 0, outcome.err
    return read_volume(output).array, outcome.err


def test_row_26_an_exact_copy_is_dropped(tmp_path: Path, command: Command) -> None:
    paths = build_series(tmp_path / "series", EVEN)
    whole = read_volume(tmp_path / "series").array
    shutil.copy(paths[2], tmp_path / "series" / "copy.dcm")
    array, said = denoised(command, tmp_path / "series")
    assert np.array_equal(array, whole)
    assert "1 exact copies of slices were dropped" in said


def test_rows_25_and_31_a_series_is_chosen(tmp_path: Path, command: Command) -> None:
    paths = build_series(tmp_path / "series", EVEN)
    whole = read_volume(tmp_path / "series").array
    two_series(paths)
    for choice in ("7", "1.2.3.4"):
        assert np.array_equal(denoised(command, tmp_path / "series", "--series", choice)[0], whole)


def test_row_32_names_and_numbers_do_not_matter(tmp_path: Path, command: Command) -> None:
    paths = build_series(tmp_path / "series", [7.5, 0.0, 10.0, 2.5, 5.0])
    array, _ = denoised(command, tmp_path / "series")
    for height, name in ((0, 1), (2, 4), (4, 2)):
        stored = pydicom.dcmread(paths[name]).pixel_array
        assert np.array_equal(array[..., height], stored.T.astype(np.float32) - 1024)


def test_rows_36_and_51_other_files_are_skipped(tmp_path: Path, command: Command) -> None:
    """A report, a treatment plan, text; private tags and names are nobody's business."""
    paths = build_series(tmp_path / "series", EVEN)
    whole = read_volume(tmp_path / "series").array
    for name in ("test-SR.dcm", "rtplan.dcm"):
        shutil.copy(real_file(name), tmp_path / "series" / name)
    (tmp_path / "series" / "notes.txt").write_text("notes")
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.private_block(0x0099, "SECRET MAKER", create=True).add_new(1, "LO", "SECRET VALUE")
        dataset.save_as(path)
    array, said = denoised(command, tmp_path / "series")
    assert np.array_equal(array, whole)
    assert "SECRET" not in said


def test_row_39_compressed_slices_are_decoded(tmp_path: Path, command: Command) -> None:
    paths = build_series(tmp_path / "series", EVEN)
    whole = read_volume(tmp_path / "series").array
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(path)
    assert np.array_equal(denoised(command, tmp_path / "series")[0], whole)


def test_row_41_monochrome1_keeps_its_stored_values(tmp_path: Path, command: Command) -> None:
    paths = build_series(tmp_path / "series", EVEN)
    whole = read_volume(tmp_path / "series").array
    every(PhotometricInterpretation="MONOCHROME1")(paths)
    assert np.array_equal(denoised(command, tmp_path / "series")[0], whole)


def test_row_42_each_slice_has_its_own_slope(tmp_path: Path, command: Command) -> None:
    paths = build_series(tmp_path / "series", EVEN)
    for index, path in enumerate(paths):
        edit(path, RescaleSlope=0.37 * (index + 1), RescaleIntercept=index)
    array, _ = denoised(command, tmp_path / "series", "--dtype", "float32")
    for index, path in enumerate(paths):
        expected = pydicom.dcmread(path).pixel_array.T * (0.37 * (index + 1)) + index
        np.testing.assert_allclose(array[..., index], expected, atol=1e-3)


@pytest.mark.parametrize("signed", [False, True])
def test_row_45_only_the_stored_bits_count(tmp_path: Path, command: Command, signed: bool) -> None:
    values = np.array([[0, 1, 2047], [-2048 if signed else 4095, 7, -1 if signed else 2048]])
    raw = ((values & 0x0FFF) | 0xA000).astype(np.uint16)
    path = build_dicom(
        tmp_path / "scan.dcm", raw, BitsStored=12, HighBit=11, PixelRepresentation=int(signed), RescaleIntercept=0
    )
    assert np.array_equal(denoised(command, path)[0].squeeze(), values.T)


def test_row_50_a_file_without_a_part_10_header(tmp_path: Path, command: Command) -> None:
    path = build_dicom(tmp_path / "scan.dcm", np.arange(30, dtype=np.int16).reshape(6, 5))
    whole = read_volume(path).array
    bare = pydicom.Dataset(pydicom.dcmread(path))
    path.unlink()
    pydicom.dcmwrite(path, bare, implicit_vr=True, little_endian=True)
    assert path.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(denoised(command, path)[0].squeeze(), whole)
