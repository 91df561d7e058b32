"""Means are given back where they were: sums, levels beside edges, and constant regions hold."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from adl_monai.data.noise_floor import NoiseFloord, keep_means, keeps_means, warn_of_fall
from adl_monai.data.transforms import BlendStrengthd
from adl_monai.errors import UsageError

SHAPE = (1, 45, 37, 26)


def random(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def block(shape: tuple[int, ...] = SHAPE) -> Tensor:
    """True in the middle, with a wide border of False."""
    inside = torch.zeros(shape, dtype=torch.bool)
    inside[:, 10:-10, 10:-10] = True
    return inside


@pytest.mark.parametrize("spatial_dims, shape", [(3, SHAPE), (2, SHAPE), (2, (1, 45, 37)), (3, (1, 5, 4, 3))], ids=str)
def test_sums_and_offsets_come_back(spatial_dims: int, shape: tuple[int, ...]) -> None:
    noisy = random(shape)
    denoised = 0.1 * noisy - 0.4
    kept = keep_means(noisy, denoised, spatial_dims)
    assert kept.shape == noisy.shape
    torch.testing.assert_close(kept.mean(), noisy.mean(), rtol=0, atol=1e-4)
    assert kept.std() < 0.3 < noisy.std()
    torch.testing.assert_close(keep_means(noisy, noisy, spatial_dims), noisy)


def test_slices_are_taken_one_by_one() -> None:
    noisy, denoised = random(), 0.1 * random() - random((1, 1, 1, 26), 1)
    kept = keep_means(noisy, denoised, 2)
    for plane in (0, 25):
        alone = keep_means(noisy[..., plane], denoised[..., plane], 2).clamp(noisy.min(), noisy.max())
        torch.testing.assert_close(kept[..., plane], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spatial_dims, left", [(3, 0.002), (2, 0.003)])
def test_next_to_no_noise_comes_back(spatial_dims: int, left: float) -> None:
    """A thousandth of the variance, somewhat more at the edges of the image and where lines are fitted."""
    noisy = random((1, 96, 96, 48) if spatial_dims == 3 else (1, 192, 192))
    assert keep_means(noisy, torch.zeros_like(noisy), spatial_dims).var() < left


def test_a_constant_background_stays_so_and_the_sum_too() -> None:
    inside = block()
    noisy = torch.where(inside, torch.poisson(torch.full(SHAPE, 1.5), torch.Generator().manual_seed(0)), 0.0)
    kept = keep_means(noisy, torch.where(inside, 0.2, 0.01), 3)
    assert (kept[:, :9] == 0).all()
    assert (kept[:, :, -9:] == 0).all()
    torch.testing.assert_close(kept.sum(), noisy.sum(), rtol=1e-3, atol=0)
    torch.testing.assert_close(kept[:, 14:-14, 14:-14].mean(), noisy[:, 14:-14, 14:-14].mean(), rtol=0.03, atol=0)


@pytest.mark.parametrize("level", [1.0, 0.3, 700.0])
def test_single_voxels_in_a_constant_image_come_back(level: float) -> None:
    """The windows around them hold next to nothing, and nothing differs in them but by rounding."""
    noisy = torch.zeros(SHAPE)
    noisy[0, 12, 12, 12] = level
    noisy[0, 30, 20:22, 13] = 0.7 * level
    kept = keep_means(noisy, 0.3 * noisy + 0.1 * level, 3)
    torch.testing.assert_close(kept, noisy, rtol=1e-3, atol=0)


def test_what_was_taken_on_one_side_of_an_edge_is_not_given_to_the_other() -> None:
    dark, noise = ~block(), 0.05 * random()
    noisy = torch.where(dark, 0.0, 1.0) + noise
    kept = keep_means(noisy, torch.where(dark, -0.1, 1.0), 3)
    assert abs(kept[:, 12:-12, 12:-12].mean() - 1) < 0.005, "a plain Gaussian adds 0.03 here"
    assert abs(kept[dark].mean()) < 0.005


def test_the_range_of_the_noisy_image_is_not_left() -> None:
    noisy = random().clamp(min=-0.5)
    kept = keep_means(noisy, 1.5 * noisy - 0.2, 3)
    assert kept.min() >= noisy.min()
    assert kept.max() <= noisy.max()


@pytest.mark.parametrize("taken_to", [0.0, 1.0])
def test_what_is_given_back_does_not_leave_the_range_either(taken_to: float) -> None:
    """Voxels at the end of the range that nothing was taken from, among others that much was taken from."""
    noisy = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    kept = keep_means(noisy, torch.where(random() > 1, noisy, taken_to), 3)
    assert kept.min() >= noisy.min()
    assert kept.max() <= noisy.max()


@pytest.mark.parametrize(
    "noise_floor, modality, kept",
    [
        *(("auto", modality, True) for modality in ("CT", "PT", "NM", "US", "CR", "DX", "MG", "XA", "OT")),
        ("auto", "MR", False),
        ("auto", "", False),
        ("keep", "MR", True),
        ("remove", "CT", False),
    ],
)
def test_the_modality_decides_where_nobody_else_does(noise_floor: str, modality: str, kept: bool) -> None:
    assert keeps_means(noise_floor, modality) is kept
    noisy = MetaTensor(random())
    noisy.meta["modality"] = modality
    case = {"image": noisy, "pred": MetaTensor(0.1 * random() - 0.4)}
    given = NoiseFloord(noise_floor=noise_floor)(case)["pred"]
    assert isinstance(given, MetaTensor)
    assert (abs(given.mean() - noisy.mean()) < 1e-4) == kept
    assert torch.equal(given, case["pred"]) != kept


def test_strength_0_gives_the_input_to_the_bit() -> None:
    noisy = random()
    case = {"image": noisy, "pred": 0.1 * noisy - 0.4}
    for transform in (BlendStrengthd(strength=0), NoiseFloord(noise_floor="keep")):
        case = transform(case)
    assert torch.equal(case["pred"], noisy)


def test_another_choice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'drop' is unknown; expected auto, remove or keep"):
        NoiseFloord(noise_floor="drop")


@pytest.mark.parametrize("fall, said", [(0.04, False), (0.06, True), (-0.5, False)])
def test_a_noticeable_fall_is_told_in_stored_values(caplog: pytest.LogCaptureFixture, fall: float, said: bool) -> None:
    noisy = MetaTensor(torch.full(SHAPE, 0.5))
    noisy.meta.update(intensity_offset=100.0, intensity_scale=20.0, filename_or_obj="scan.nii")
    with caplog.at_level(logging.WARNING):
        NoiseFloord()({"image": noisy, "pred": noisy - fall * 0.5})
        NoiseFloord(noise_floor="remove")({"image": noisy, "pred": noisy - fall * 0.5})
        noisy.meta["modality"] = "MR"  # nothing that a user must know
        NoiseFloord()({"image": noisy, "pred": noisy - fall * 0.5})
    expected = ["scan.nii: the mean fell from 110 to 109.4"] if said else []
    assert [record.getMessage().split(",")[0] for record in caplog.records] == expected


@pytest.mark.parametrize("strength, told", [(0.4, []), (0.6, ["the image: the mean fell from 0.5 to 0.47"])])
def test_the_fall_that_is_told_is_that_after_the_blend(
    caplog: pytest.LogCaptureFixture, strength: float, told: list[str]
) -> None:
    noisy = torch.full(SHAPE, 0.5)
    NoiseFloord(strength=strength)({"image": noisy, "pred": noisy - 0.05})
    assert [record.getMessage().split(",")[0] for record in caplog.records] == told


def test_nothing_is_said_of_an_image_without_a_mean(caplog: pytest.LogCaptureFixture) -> None:
    for means in ((0.0, 0.0, 0.0), (1.0, 0.0, 1.0), (np.nan, 0.0, 0.0)):
        warn_of_fall("scan", *means)
    assert not caplog.records


def test_what_nothing_was_taken_from_stays() -> None:
    """Rims and corners of blank regions, which the inferer has put back, and single empty planes."""
    blank = torch.zeros(SHAPE, dtype=torch.bool)
    blank[:, :4], blank[:, :6, :6], blank[..., 12] = True, True, True
    noisy = torch.where(blank, 0, 1 + random())
    denoised = torch.where(blank, noisy, 0.1 * noisy + 0.5)
    kept = keep_means(noisy, denoised, 3)
    assert torch.equal(kept[blank], noisy[blank])
    torch.testing.assert_close(kept.mean(), noisy.mean(), rtol=0, atol=1e-3)
