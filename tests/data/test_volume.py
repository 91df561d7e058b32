import logging
from pathlib import Path

import numpy as np
import pytest

from adl_monai.data.volume import Volume, plain_dtype
from adl_monai.data.voxels import quantise, to_float32, warn_lost_digits
from adl_monai.errors import OutputError, ScanFileError

SCAN = Path("scan.nii")


def test_quantise_undoes_to_float32_on_every_code_of_a_type() -> None:
    codes = np.arange(-32768, 32768, dtype=np.int16).reshape(256, 256)
    for slope, inter in ((1.0, 0.0), (0.37, -1024.0), (-2.5, 3.0), (1e-3, 20.0)):
        stored, clipped = quantise(to_float32(codes, SCAN, slope, inter), codes.dtype, slope, inter)
        assert np.array_equal(stored, codes)
        assert clipped == 0


@pytest.mark.parametrize("name", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_quantise_saturates_and_counts_and_never_wraps(name: str) -> None:
    dtype, limits = np.dtype(name), np.iinfo(name)
    values = np.array([[-3e38, -1e30, 5.0, 6.4, 1e30, 3e38]], np.float32)
    stored, clipped = quantise(values, dtype)
    assert clipped == 4
    assert stored[0, :2].tolist() == [limits.min] * 2
    assert stored[0, 2:4].tolist() == [5, 6]
    assert (stored[0, 4:].astype(float) >= float(limits.max) * (1 - 1e-15)).all()


def test_quantise_rounds_instead_of_truncating() -> None:
    stored, _ = quantise(np.array([[1.6, -1.6, 0.4]], np.float32), np.dtype(np.int16))
    assert stored.tolist() == [[2, -2, 0]]


def test_quantise_rounds_halves_to_even_so_that_they_shift_no_mean() -> None:
    stored, _ = quantise(np.array([[-1.5, -0.5, 0.5, 1.5, 2.5]], np.float32), np.dtype(np.int16))
    assert stored.tolist() == [[-2, 0, 0, 2, 2]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_results_are_not_written(bad: float) -> None:
    with pytest.raises(OutputError, match="2 of 6"):
        quantise(np.array([[1, bad, 2], [3, 4, bad]], np.float32), np.dtype(np.int16))


def test_too_large_for_a_real_type() -> None:
    with pytest.raises(OutputError, match="float16"):
        quantise(np.array([[1e6]], np.float32), np.dtype(np.float16))


def test_to_float32_counts_nan_and_refuses_overflow() -> None:
    with pytest.raises(ScanFileError, match="2 of 4 voxels are NaN"):
        to_float32(np.array([[np.nan, 1], [np.inf, 2]], np.float32), SCAN)
    with pytest.raises(ScanFileError, match="1 values exceed"):
        to_float32(np.array([[1e39, 1.0]]), SCAN)
    with pytest.raises(ScanFileError, match="exceed"):
        to_float32(np.array([[7]], np.int16), SCAN, slope=1e300)
    with pytest.raises(ScanFileError, match="too small"):
        to_float32(np.array([[7]], np.int16), SCAN, slope=1e-300)


def test_to_float32_is_contiguous_whatever_the_file_order() -> None:
    stored = np.asfortranarray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    values = to_float32(stored, SCAN, 2.0, 1.0)
    assert values.flags.c_contiguous
    assert np.array_equal(values, stored * 2.0 + 1.0)


@pytest.mark.parametrize(
    "stored, slope, warned",
    [
        (np.array([[2**24]], np.int64), 1.0, False),
        (np.array([[2**24 + 2]], np.int64), 1.0, True),
        (np.array([[2**31 - 1]], np.uint32), 1.0, True),
        (np.array([[30000]], np.int16), 1.0, False),
        (np.array([[30000]], np.int16), -1.0, False),
        (np.array([[2**24 + 2]], np.int64), 0.5, True),
        (np.array([[1e30]], np.float64), 1.0, False),
        (np.array([[1e6, 1e6 + 1]], np.float64), 1.0, True),
        (np.array([[1e3, 1e3 + 1]], np.float64), 1.0, False),
        (np.array([[1e6, 1e6 + 1]], np.float32), 1.0, False),
    ],
)
def test_lost_digits_are_warned_of(
    stored: np.ndarray, slope: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "adl_monai"):
        warn_lost_digits(to_float32(stored, SCAN, slope), stored.dtype, SCAN, slope)
    assert bool(caplog.records) is warned


@pytest.mark.parametrize(
    "stored",
    [np.array([[1e8, 1e8 + 1]]), np.array([[0.0, 1e-300]]), np.array([[2**40, 2**40 + 1]], np.int64)],
)
def test_what_float32_would_flatten_is_refused(stored: np.ndarray) -> None:
    with pytest.raises(ScanFileError, match=r"voxels differ .* but are all .* in float32"):
        to_float32(stored, SCAN)


def test_a_constant_is_not_refused() -> None:
    assert to_float32(np.full((2, 2), 1e8 + 1), SCAN).tolist() == [[1e8, 1e8], [1e8, 1e8]]


@pytest.mark.parametrize(
    "values, stored, expected",
    [
        ([-1024, 3000], "uint16", "int16"),
        ([0, 60000], "uint16", "uint16"),
        ([-1024, 60000], "uint16", "int32"),
        ([0, 255], "uint8", "uint8"),
        ([0.5, 3.0], "int16", "float32"),
        ([0.0, 1e12], "int16", "float32"),
        ([1, 2], "float64", "float64"),
        ([1, 2], ">i2", "int16"),
    ],
)
def test_plain_dtype(values: list[float], stored: str, expected: str) -> None:
    volume = Volume(np.array([values], np.float32), np.eye(4), np.dtype(stored), "dicom", SCAN)
    assert plain_dtype(volume) == np.dtype(expected)


def test_spacing_has_one_number_per_axis(oblique: np.ndarray) -> None:
    for shape in ((3, 4), (3, 4, 5)):
        volume = Volume(np.zeros(shape, np.float32), oblique, np.dtype(np.int16), "nifti", SCAN)
        assert np.allclose(volume.spacing, np.linalg.norm(oblique[:3, :3], axis=0)[: len(shape)])
