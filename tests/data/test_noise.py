import math

import pytest
import torch

from adl_monai.data.noise import (
    KINDS,
    add_clipped,
    add_correlated,
    add_correlated_poisson,
    add_correlated_rician,
    add_gaussian,
    add_masked,
    add_mixed,
    add_nonstationary,
    add_nonstationary_rician,
    add_poisson,
    add_rician,
    add_speckle,
)
from adl_monai.data.noise_field import FWHM, correlating_filter, level_map, random_transfer, smoothing_filter

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
    return torch.stack([correlating_filter((size,), generator(seed)) for seed in range(count)])


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
    expected = correlating_filter(shape[1:], generator(seed)).square()
    assert (power[:, expected == 0] < 1e-9).all()
    for axis in spatial:
        others = [other for other in spatial if other != axis]
        profile = expected.mean([other - 1 for other in others])
        torch.testing.assert_close(power.mean([0, *others]), profile, atol=0.1, rtol=0.3)


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 32, 32, 1), (1, 16, 16, 16)])
def test_sigma_is_the_standard_deviation_of_correlated_noise(shape):
    noise = [add_correlated(torch.full(shape, 0.7), 0.1, generator(seed)) - 0.7 for seed in range(200)]
    assert torch.stack(noise).square().mean().sqrt().item() == pytest.approx(0.1, rel=0.03)


@pytest.mark.parametrize("level", [0.3, 1.0])
@pytest.mark.parametrize("shape", [(1, 96, 96), (1, 32, 32, 32)])
def test_smoothed_counts_have_the_mean_and_the_variance_of_photons(shape, level):
    clean = torch.full(shape, level)
    noise = torch.stack([add_correlated_poisson(clean, 0.1, generator(seed)) - clean for seed in range(60)])
    assert noise.mean().abs() < 0.001
    deviations = noise.flatten(1).std(1) / (0.1 * math.sqrt(level))
    assert deviations.square().mean().item() == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(deviations, torch.ones(60), rtol=0.2, atol=0)  # few of a wide filter's are independent


@pytest.mark.parametrize("seed", range(4))
def test_smoothed_counts_have_the_spectrum_of_their_filter(seed):
    clean = torch.full((12, 96, 80), 0.7)
    power = torch.fft.fftn(add_correlated_poisson(clean, 0.1, generator(seed)) - clean, dim=(1, 2)).abs().square()
    power = power.mean(0) / (96 * 80) / (0.1**2 * 0.7)
    expected = smoothing_filter((96, 80), generator(seed)).square()
    assert (power[expected == 0] < 1e-9).all()
    for axis in (0, 1):
        torch.testing.assert_close(power.mean(axis), expected.mean(axis), atol=0.1, rtol=0.5)


def test_reconstructions_smooth_alike_along_the_axes_or_all_but_one():
    shape, at = (24, 20, 28), 2
    filters = [smoothing_filter(shape, generator(seed)) for seed in range(400)]
    torch.testing.assert_close(torch.stack([one.square().mean() for one in filters]), torch.ones(400))
    widths = []  # FWHM along each axis, from the second frequency
    for one in filters:
        along = (one[at, 0, 0], one[0, at, 0], one[0, 0, at])
        ratios = torch.stack(along) / one[0, 0, 0]
        frequencies = torch.tensor([at / size for size in shape])
        widths.append((-ratios.clamp(max=1).log() / (2 * (math.pi * frequencies) ** 2)).sqrt() * FWHM)
    widths = torch.stack(widths)
    widest, narrowest = widths.amax(1), widths.amin(1)
    alike = (widest - narrowest) < 0.02 * widest
    but_one = ~alike & (narrowest < 0.01) & ((widths.median(1).values - widest).abs() < 0.02 * widest)
    assert alike.float().mean().item() == pytest.approx(4 / 9, abs=0.1)  # and white of the other kind, 1 / 81
    assert but_one.float().mean().item() == pytest.approx(2 / 9, abs=0.1)
    assert 2.9 < widest.max() < 3.01
    assert widest[alike].median().item() == pytest.approx(1.5, abs=0.25)


def test_where_nothing_is_counted_smoothed_counts_have_next_to_no_noise():
    clean = torch.zeros(1, 96, 96)
    clean[:, 40:] = 1.0
    clean[:, :4] = -0.5  # as nothing; what the filter reaches over the edge is far away
    spread = 0
    for seed in range(40):
        noise = add_correlated_poisson(clean, 0.2, generator(seed)) - clean
        far, beside, inside = noise[:, 12:28].std(), noise[:, 38:40].std(), noise[:, 48:88].std()
        assert far < 0.1 * inside
        spread += bool(beside > 0.1 * inside)  # smoothed with what they belong to
    assert 10 < spread < 40


def test_smoothed_counts_are_whole_photons_before_their_filter():
    """Few photons lie above their mean farther than below it, which no Gaussian noise does."""
    clean = torch.full((1, 64, 64, 16), 0.2)
    skews = []
    for seed in range(20):
        noise = add_correlated_poisson(clean, 0.25, generator(seed)) - clean
        skews.append(((noise / noise.std()) ** 3).mean().item())
    assert min(skews) > 0.1


def noise_of_the_same_draw(clean, seed):
    numbers = generator(seed)
    transfer = smoothing_filter(clean.shape[1:], numbers)
    torch.rand((), generator=numbers)  # the floor
    return torch.fft.ifft2(torch.fft.fft2(torch.randn(clean.shape, generator=numbers)) * transfer).real


def test_clipped_noise_is_correlated_noise_cut_off_a_little_below_zero():
    clean = torch.linspace(-0.1, 1.0, 32).expand(1, 32, 32)
    floors = []
    for seed in range(40):
        noisy = add_clipped(clean, 0.1, generator(seed))
        floors.append(noisy.min().item())
        whole = clean + 0.1 * noise_of_the_same_draw(clean, seed)
        torch.testing.assert_close(noisy, whole.clamp(min=floors[-1]))
        assert (noisy == noisy.min()).sum() > 20
    assert -0.1 <= min(floors) < -0.09
    assert -0.01 < max(floors) <= 0


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
    factor = correlating_filter((VOXELS,), generator(seed))
    expected = torch.fft.ifft(factor.double().square()).real.square()
    for lag in (1, 2, 3):
        correlation = (square * square.roll(lag)).mean() / square.square().mean()
        assert correlation.item() == pytest.approx(expected[lag].item(), abs=0.015)


def test_spectra_of_nonstationary_noise_are_of_every_kind_and_keep_its_power():
    filters = torch.stack([random_transfer((64, 48), generator(seed)) for seed in range(300)])
    torch.testing.assert_close(filters.square().mean((1, 2)), torch.ones(300))
    power = filters.square()
    radius = torch.hypot(torch.fft.fftfreq(64)[:, None], torch.fft.fftfreq(48))
    slow, fast = power[:, radius < 0.1].mean(1), power[:, radius > 0.3].mean(1)
    middle = power[:, (radius > 0.15) & (radius < 0.25)].mean(1)
    for share in ((slow > 4 * fast), (fast > 1.5 * slow), ((middle > 1.2 * slow) & (middle > 1.2 * fast))):
        assert share.float().mean() > 0.05
    # Half of the draws have a white part, and so no frequency without noise, even where an axis is cut.
    floor = power.amin((1, 2))
    assert 0.4 < (floor > 1e-3).float().mean() < 0.75
    assert ((floor > 1e-3) & (floor < 0.2)).float().mean() > 0.4


@pytest.mark.parametrize("shape", [(50,), (40, 60), (24, 20, 28)])
def test_maps_of_levels_are_smooth_and_keep_the_power(shape):
    maps = torch.stack([level_map(shape, generator(seed)) for seed in range(100)])
    axes = tuple(range(1, len(shape) + 1))
    torch.testing.assert_close(maps.square().mean(axes), torch.ones(100))
    assert maps.min() > 0
    ratio = maps.amax(axes) / maps.amin(axes)
    assert ratio.min() < 1.1
    assert 1.3 < ratio.median() < 5
    for axis in axes:
        bends = maps.diff(n=2, dim=axis).abs() > 1e-5
        assert bends.sum() > 0
        # linear between three control points: the slope changes around the middle alone
        places = bends.nonzero()[:, axis]
        assert (places - (shape[axis - 1] - 3) / 2).abs().max() <= 1


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 32, 32, 1), (2, 16, 16, 16)])
def test_sigma_is_the_root_mean_square_of_nonstationary_noise_where_the_signal_is_one(shape):
    noise = [add_nonstationary(torch.ones(shape), 0.1, generator(seed)) - 1 for seed in range(300)]
    assert torch.stack(noise).square().mean().sqrt().item() == pytest.approx(0.1, rel=0.03)
    assert torch.stack(noise).mean().abs() < 0.005


def test_nonstationary_noise_follows_its_map_and_in_one_half_of_the_draws_the_signal():
    clean = torch.ones(400, 32, 48)
    clean[:, 16:] = 0.25
    ratios = []
    for seed in range(60):
        level = level_map_of(seed)
        noise = (add_nonstationary(clean, 0.1, generator(seed)) - clean) / (0.1 * level)
        deviation = noise.square().mean(0).sqrt()
        bright, dark = deviation[:16], deviation[16:]
        assert bright.mean().item() == pytest.approx(1, abs=0.01)
        torch.testing.assert_close(bright, torch.ones(16, 48), atol=0.17, rtol=0)
        ratios.append((dark.mean() / bright.mean()).item())
    ratios = torch.tensor(ratios)
    assert ratios.min() > 0.49
    assert ratios.min() < 0.6
    assert 0.3 < ((ratios - 1).abs() < 0.01).float().mean() < 0.7


def test_nonstationary_noise_is_at_negative_values_what_it_is_at_zero():
    for seed in range(4):
        below = add_nonstationary(torch.full((2, 32, 48), -0.5), 0.1, generator(seed)) + 0.5
        torch.testing.assert_close(below, add_nonstationary(torch.zeros(2, 32, 48), 0.1, generator(seed)))


def level_map_of(seed):
    """The map that noise of (C, 32, 48) draws after its spectrum."""
    numbers = generator(seed)
    random_transfer((32, 48), numbers)
    return level_map((32, 48), numbers)


def test_nonstationary_magnitudes_have_the_moments_of_rician_ones_at_every_place():
    for seed in range(4):
        level = 0.1 * level_map_of(seed)
        square = add_nonstationary_rician(torch.full((600, 32, 48), 0.3), 0.1, generator(seed)).square().mean(0)
        torch.testing.assert_close(square, 0.3**2 + 2 * level**2, atol=0, rtol=0.2)
        assert (square.mean() / (0.3**2 + 2 * level**2).mean()).item() == pytest.approx(1, abs=0.02)
    assert add_nonstationary_rician(torch.full((1, 32, 48), -0.2), 0.1, generator()).min() >= 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_intensities_gets_noise_without_neighbours(kind):
    """Such a sample tells the range of the whole noisy image; it is (C,), without spatial axes."""
    noise = KINDS[kind](torch.ones(VOXELS), 0.1, generator()) - 1
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert (noise[1:] * noise[:-1]).mean().item() == pytest.approx(noise.mean().item() ** 2, abs=1e-4)


@pytest.mark.parametrize("shape", [(1, 96, 80), (2, 32, 40, 24)])
def test_what_was_cut_out_is_noisy_and_what_is_around_it_is_not(shape):
    clean = torch.zeros(shape)
    clean[:, 10:] = 1e-3  # any signal is signal
    clean[:, 20:] = 0.7
    clean[:, :4] = -0.5
    noise = torch.stack([add_masked(clean, 0.1, generator(seed)) - clean for seed in range(40)])
    assert not noise[:, :, :10].any()
    for inside in (noise[:, :, 10:20], noise[:, :, 20:]):
        assert inside.mean().abs() < 0.003
        assert inside.square().mean().sqrt().item() == pytest.approx(0.1, rel=0.1)


def test_noise_of_what_was_cut_out_has_any_spectrum():
    clean = torch.full((12, 96, 80), 0.3)
    for seed in range(4):
        power = torch.fft.fftn(add_masked(clean, 0.1, generator(seed)) - clean, dim=(1, 2)).abs().square().mean(0)
        expected = random_transfer((96, 80), generator(seed)).square()
        for axis in (0, 1):
            torch.testing.assert_close(power.mean(axis) / (96 * 80 * 0.1**2), expected.mean(axis), atol=0.1, rtol=0.5)
