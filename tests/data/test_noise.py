import math

import pytest
import torch

from adl_monai.data.noise import (
    add_correlated,
    add_correlated_rician,
    add_gaussian,
    add_mixed,
    add_poisson,
    add_rician,
    add_speckle,
    correlating_filter,
)

VOXELS = 200_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_statistics(add, level, sigma):
    noisy = add(torch.full((VOXELS,), level), sigma, generator())
    assert noisy.dtype == torch.float32
    return noisy.double().mean().item(), noisy.double().std().item()


@pytest.mark.parametrize("level", [0.0, 0.2, 1.0, 3.0])
@pytest.mark.parametrize(
    "add, variance",
    [
        (add_gaussian, lambda level: 1.0),
        (add_poisson, lambda level: level),
        (add_speckle, lambda level: level**2),
        (add_mixed, lambda level: (level + 1) / 2),
    ],
    ids=["gaussian", "poisson", "speckle", "mixed"],
)
def test_mean_and_variance_follow_theory(add, variance, level):
    sigma = 0.1
    mean, std = noise_statistics(add, level, sigma)
    expected = sigma * math.sqrt(variance(level))
    assert mean == pytest.approx(level, abs=5 * expected / math.sqrt(VOXELS) + 1e-6)
    assert std == pytest.approx(expected, rel=0.02, abs=1e-9)


def test_rician_has_its_floor_without_signal_and_is_gaussian_at_high_signal():
    sigma = 0.1
    floor = sigma * math.sqrt(math.pi / 2)
    for level in (0.0, -0.3):
        mean, std = noise_statistics(add_rician, level, sigma)
        assert mean == pytest.approx(floor, rel=0.01)
        assert std == pytest.approx(sigma * math.sqrt(2 - math.pi / 2), rel=0.01)
    mean, std = noise_statistics(add_rician, 2.0, sigma)
    assert mean == pytest.approx(2.0 + sigma**2 / 4, abs=1e-3)
    assert std == pytest.approx(sigma, rel=0.02)
    # The second moment is exact at every level: E[m²] = clean² + 2 sigma².
    noisy = add_rician(torch.full((VOXELS,), 0.1), sigma, generator())
    assert noisy.double().square().mean().item() == pytest.approx(0.1**2 + 2 * sigma**2, rel=0.02)
    assert noisy.min() >= 0


def test_poisson_noise_comes_in_whole_photons_and_leaves_negative_values():
    sigma = 0.25
    noisy = add_poisson(torch.full((1000,), 0.5), sigma, generator())
    photons = noisy / sigma**2
    torch.testing.assert_close(photons, photons.round())
    assert torch.equal(add_poisson(torch.full((9,), -0.5), sigma, generator()), torch.full((9,), -0.5))


def drawn_filters(count=300, size=64):
    return torch.stack([correlating_filter((size,), generator(seed))[0] for seed in range(count)])


def test_filters_keep_the_power_and_what_is_absent_is_absent_as_often_as_said():
    filters = drawn_filters()
    torch.testing.assert_close(filters.square().mean(1), torch.ones(300))
    white = (filters - 1).abs().amax(1) < 1e-6
    cut = (filters == 0).any(1)
    smooth = (filters[:, 0] / filters[:, 8]) > 1.0001  # 8 / 64 is below every cut
    for absent, share in ((white, 1 / 9), (~cut, 1 / 3), (~smooth, 1 / 3)):
        assert absent.float().mean().item() == pytest.approx(share, abs=4 * math.sqrt(share / 300))
    half = torch.fft.fftfreq(64).abs() < 0.25
    assert (filters[:, half] > 0).all()


def test_smoothing_is_of_two_voxels_fwhm_at_most():
    filters = drawn_filters()
    at = 8 / 64
    factors = (filters[:, 8] / filters[:, 0]).clamp(max=1)
    widths = (-factors.log() / (2 * math.pi**2 * at**2)).sqrt() * math.sqrt(8 * math.log(2))
    assert 1.9 < widths.max() < 2.001


@pytest.mark.parametrize("shape", [(12, 96, 80), (4, 40, 48, 32)])
@pytest.mark.parametrize("seed", range(4))
def test_correlated_noise_has_its_spectrum(shape, seed):
    noise = add_correlated(torch.full(shape, 0.7), 0.1, generator(seed)) - 0.7
    spatial = tuple(range(1, len(shape)))
    power = torch.fft.fftn(noise, dim=spatial).abs().square() / math.prod(shape[1:]) / 0.1**2
    for axis, factor in zip(spatial, correlating_filter(shape[1:], generator(seed)), strict=True):
        along = power.mean([other for other in range(len(shape)) if other != axis])
        torch.testing.assert_close(along, factor.square(), atol=0.1, rtol=0.3)
        assert (along[factor == 0] < 1e-9).all()


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 32, 32, 1), (1, 16, 16, 16)])
def test_sigma_is_the_standard_deviation_of_correlated_noise(shape):
    noise = [add_correlated(torch.full(shape, 0.7), 0.1, generator(seed)) - 0.7 for seed in range(200)]
    assert torch.stack(noise).square().mean().sqrt().item() == pytest.approx(0.1, rel=0.03)


def test_channels_share_no_correlated_noise():
    clean = torch.zeros(2, 64, 64)
    pairs = [torch.corrcoef(add_correlated(clean, 1.0, generator(seed)).flatten(1))[0, 1] for seed in range(20)]
    assert torch.stack(pairs).mean().abs() < 0.02


def test_correlated_magnitudes_have_the_moments_of_rician_ones():
    sigma = 0.1
    squares = [
        add_correlated_rician(torch.full((1, 32, 32, 16), 0.3), sigma, generator(seed)).square().mean()
        for seed in range(60)
    ]
    assert torch.stack(squares).mean().item() == pytest.approx(0.3**2 + 2 * sigma**2, rel=0.01)
    floor = add_correlated_rician(torch.full((1, 64, 64, 64), -0.2), sigma, generator(4))
    assert floor.min() >= 0
    assert floor.mean().item() == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_both_channels_of_correlated_magnitudes_have_one_spectrum(seed):
    """Without signal, the squared magnitude correlates by the square of what each channel correlates by."""
    square = add_correlated_rician(torch.zeros(1, VOXELS), 1.0, generator(seed))[0].double().square()
    square -= square.mean()
    (factor,) = correlating_filter((VOXELS,), generator(seed))
    expected = torch.fft.ifft(factor.double().square()).real.square()
    for lag in (1, 2, 3):
        correlation = (square * square.roll(lag)).mean() / square.square().mean()
        assert correlation.item() == pytest.approx(expected[lag].item(), abs=0.015)
