"""Pairs on one grid whose numbers do not go together."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from adl_monai.data.noise import KINDS
from adl_monai.data.pair_intensities import PairIntensities, compare_pair, warn_of_pairs


def head(seed: int = 0) -> np.ndarray:
    """Smooth tissue, about [0, 1], in a background of zeros that is half of the scan."""
    tissue = gaussian_filter(np.random.default_rng(seed).normal(size=(32, 32, 32)), 3)
    tissue = (tissue - tissue.min()) / np.ptp(tissue)
    return np.where(np.indices(tissue.shape)[0] < 16, 0, tissue).astype(np.float32)


def compared(noisy: np.ndarray, clean: np.ndarray) -> PairIntensities:
    found = compare_pair("p.nii", noisy, clean)
    assert found is not None
    return found


@pytest.mark.parametrize("sigma", [0.0, 0.02, 0.25])
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("offset", [0, -1000])
def test_noise_of_training_is_nothing_to_warn_of(kind: str, sigma: float, offset: int) -> None:
    clean = head()
    noisy = KINDS[kind](torch.from_numpy(clean)[None], sigma, torch.Generator().manual_seed(1))[0].numpy()
    found = compared(noisy * 400 + offset, clean * 400 + offset)
    assert not found.far_apart
    assert not found.swapped


@pytest.mark.parametrize(("gain", "offset"), [(0.1, 0), (40, 0), (-1, 0), (1, 1024), (1, -1024)])
def test_another_unit_is_seen_under_noise(gain: float, offset: float) -> None:
    clean = head() * 400
    noisy = clean + 20 * np.random.default_rng(1).normal(size=clean.shape)
    found = compared(gain * noisy + offset, clean)
    assert found.far_apart
    assert found.gain == pytest.approx(gain, rel=0.05)
    assert found.offset == pytest.approx(offset, abs=10)
    assert not found.swapped


def test_scans_of_two_subjects_are_seen() -> None:
    assert compared(head(1)[::-1], head(2)).far_apart


@pytest.mark.parametrize("unit", [1, 7])
@pytest.mark.parametrize("shape", [(32, 32, 32), (32, 32)])
def test_swapped_scans_are_seen_in_any_unit(unit: float, shape: tuple[int, ...]) -> None:
    clean = head()[..., 3] if len(shape) == 2 else head()
    noisy = unit * (clean + 0.1 * np.random.default_rng(1).normal(size=shape))
    assert compared(clean, noisy).swapped
    assert not compared(noisy, clean).swapped


def test_constant_scans_say_nothing() -> None:
    flat = np.ones((8, 8, 8), np.float32)
    assert compare_pair("p.nii", flat, head()[:8, :8, :8]) is None
    assert compare_pair("p.nii", head()[16:24, :8, :8], flat) is None


def test_one_warning_says_which_fault_it_is(caplog: pytest.LogCaptureFixture) -> None:
    sound, apart, swapped = (
        PairIntensities(name, 0.1, -3.0, far_apart, swapped)
        for name, far_apart, swapped in (("a", False, False), ("b", True, False), ("c", True, True))
    )
    with caplog.at_level(logging.WARNING):
        warn_of_pairs([sound, sound])
        assert not caplog.messages
        warn_of_pairs([sound, apart])
        warn_of_pairs([sound, apart, swapped])
    units, folders = caplog.messages
    assert "1 of 2 pairs" in units
    assert "such as b, which is about 0.1 times its clean scan minus 3." in units
    assert "1 of 3 pairs" in folders
    assert "such as c." in folders
    assert "swapped" in folders
