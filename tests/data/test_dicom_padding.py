"""Padding where real pixels hold the padding value by chance, and where they cannot."""

from pathlib import Path

import numpy as np
import pydicom
import pytest

from adl_monai.data.dicom.padding import padded_pixels
from adl_monai.data.io import read_volume, write_volume

from .conftest import build_dicom

ROWS, COLUMNS = np.mgrid[:96, :96]
OUTSIDE = np.hypot(ROWS - 47.5, COLUMNS - 47.5) > 48  # of a round field of view that touches the borders
NOISE = np.clip(np.random.default_rng(3).normal(0, 20, (96, 96)), 0, None).astype(np.uint16)  # half of it is 0


def test_noise_that_happens_to_be_the_padding_value_is_no_padding() -> None:
    image = np.where((ROWS > 30) & (ROWS < 60), 600, NOISE)
    zeros = image == 0
    assert 0.2 < zeros.mean() < 0.5
    padded = padded_pixels(image, 0, 0)
    assert padded is not None  # some along the borders, behind which no more is known
    assert padded.sum() < 0.06 * zeros.sum()
    assert not padded[5:-5, 5:-5].any()


@pytest.mark.parametrize("inside", [NOISE, NOISE + 1])
def test_what_lies_outside_a_round_field_of_view_is_padding_to_the_last_pixel(inside: np.ndarray) -> None:
    image = np.where(OUTSIDE, 0, inside)
    image[40:60, 40:60] = 700
    padded = padded_pixels(image, 0, 0)
    assert padded is not None
    assert padded[OUTSIDE].all()
    core = np.hypot(ROWS - 47.5, COLUMNS - 47.5) < 40
    assert not padded[core].any()
    if inside.min() > 0:
        assert np.array_equal(padded, OUTSIDE)


@pytest.mark.parametrize("radius", [4, 8.2, 20])
def test_a_hole_is_padding(radius: float) -> None:
    hole = np.hypot(ROWS - 50, COLUMNS - 40.3) <= radius
    padded = padded_pixels(np.where(hole, 0, NOISE + 1), 0, 0)
    assert padded is not None
    assert np.array_equal(padded, hole)


def test_a_value_that_no_real_pixel_comes_near_is_padding_wherever_it_is() -> None:
    image = NOISE.astype(np.int16) * 10
    image[[10, 20, 20, 95], [50, 60, 61, 30]] = -2000
    padded = padded_pixels(image, -2000, -2000)
    assert padded is not None
    assert np.array_equal(padded, image == -2000)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_a_plane_of_nothing_else_and_one_without(dtype: type) -> None:
    whole = padded_pixels(np.full((6, 5), 7, dtype), 7, 7)
    assert whole is not None
    assert whole.all()
    assert padded_pixels(np.full((6, 5), 7, dtype), 8, 9) is None
    extreme = np.iinfo(dtype).max
    assert padded_pixels(np.array([[0, 3], [4, extreme]], dtype), extreme, extreme) is not None


def test_speckle_is_denoised_and_true_padding_put_back(tmp_path: Path) -> None:
    image = np.where(OUTSIDE, 0, NOISE).astype(np.uint16)
    source = build_dicom(tmp_path / "a.dcm", image, RescaleIntercept=0, PixelPaddingValue=0)
    volume = read_volume(source)
    assert volume.padding is not None
    write_volume(tmp_path / "b.dcm", np.full_like(volume.array, 8), like=source, affine=volume.affine)
    found = pydicom.dcmread(tmp_path / "b.dcm").pixel_array
    assert (found[OUTSIDE] == 0).all()
    assert (found[~OUTSIDE] == 8).mean() > 0.9
