import math

import numpy as np
import pytest

from adl_monai.data.synthetic import synthetic_volume
from adl_monai.data.synthetic.leaves import place_leaf
from adl_monai.data.synthetic.textures import stripes, texture_tile, wave


@pytest.mark.parametrize("order, area", [(1, 2.0), (1.5, None), (2, math.pi), (4, None), (math.inf, 4.0)])
def test_a_leaf_fits_its_box_and_has_the_volume_of_its_shape(order, area):
    rng = np.random.default_rng(2)
    if area is None:
        area = 4 * math.gamma(1 + 1 / order) ** 2 / math.gamma(1 + 2 / order)
    for dims in (2, 3):
        for _ in range(5):
            shape, centre, semi_axes = (80,) * dims, np.full(dims, 40.2), rng.uniform(6, 20, dims)
            rotation, _ = np.linalg.qr(rng.normal(size=(dims, dims)))
            leaf = place_leaf(shape, centre, semi_axes, rotation, 1.0, order)
            for axis in range(dims):
                # The box is neither too small (the leaf would be cut) nor far too large.
                profile = leaf.cover.max(axis=tuple(i for i in range(dims) if i != axis))
                assert profile[[0, -1]].max() < 0.3
                assert profile[[3, -4]].min() > 0
            if dims == 2:
                assert leaf.cover.sum() == pytest.approx(area * semi_axes.prod(), rel=0.03)
    assert place_leaf((80, 80), np.array([200.0, 40]), np.array([9.0, 9]), np.eye(2), 1.0, order) is None


def test_a_wave_goes_from_sine_to_square():
    phase = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    assert np.allclose(wave(phase, 1.0, 0.0), np.sin(phase))
    assert (np.abs(wave(phase, 10.0, 0.0)) == 1).mean() == pytest.approx(1 - 2 * np.arcsin(0.1) / np.pi, abs=0.01)
    assert (wave(phase, 10.0, 0.5) > 0).mean() == pytest.approx(2 / 3, abs=0.01)


@pytest.mark.parametrize("dims, side", [(2, 128), (3, 64)])
def test_the_power_of_stripes_lies_across_them_at_their_wavelength(dims, side):
    frequencies = np.stack(np.meshgrid(*[np.fft.fftfreq(side)] * dims, indexing="ij"))
    window = np.prod(np.stack(np.meshgrid(*[np.hanning(side)] * dims)), axis=0)
    found = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        direction = np.linalg.qr(rng.normal(size=(dims, dims)))[0][0]
        image = stripes([axis.astype(float) for axis in np.ogrid[(slice(side),) * dims]], direction, None, rng)
        assert image.shape == (side,) * dims
        assert image.dtype == np.float32
        assert -1 <= image.min() < image.max() <= 1
        power = np.abs(np.fft.fftn((image - image.mean()) * window)) ** 2
        strongest = frequencies.reshape(dims, -1)[:, power.argmax()]
        found.append(1 / np.linalg.norm(strongest))
        assert abs(strongest @ direction) / np.linalg.norm(strongest) > 0.98
        near = np.linalg.norm(frequencies - strongest.reshape(-1, *[1] * dims), axis=0) < 3 / side
        near |= np.linalg.norm(frequencies + strongest.reshape(-1, *[1] * dims), axis=0) < 3 / side
        assert power[near].sum() > 0.7 * power.sum()
    assert 2.3 < min(found) < 5
    assert 8 < max(found) < 18


@pytest.mark.parametrize("shape", [(160, 160), (48, 48, 48)])
def test_textures_are_textured_where_leaves_are_flat(shape):
    def flat_share(kind):
        steps = [np.abs(np.diff(synthetic_volume(shape, seed, kind), axis=0)) for seed in range(6)]
        return np.mean([(step < 1e-4).mean() for step in steps])

    assert flat_share("textures") < 0.6 * flat_share("leaves")


def test_textures_have_the_spectrum_of_photographs():
    """Power falls by as much, within a factor of 2, over four octaves."""
    window = np.hanning(192)[:, None] * np.hanning(192)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(192), np.fft.fftfreq(192)))
    bands = [(frequency >= low) & (frequency < 2 * low) for low in (0.03, 0.06, 0.12, 0.24)]

    def spectrum(kind):
        images = [synthetic_volume((192, 192), seed, kind) for seed in range(16)]
        power = np.mean([np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2 for image in images], axis=0)
        levels = np.array([power[band].mean() for band in bands])
        return np.log10(levels / levels[0])

    assert np.abs(spectrum("textures") - spectrum("photo")).max() < 0.3


@pytest.mark.parametrize("shape", [(200, 200), (64, 64, 64)])
def test_grain_is_coarser_than_noise(shape):
    """White noise has an eighth (2D) or a thirtieth (3D) of its power below 0.2 cycles per voxel, grain most of it."""
    shares, finest = [], []
    for seed in range(12):
        tile = texture_tile(shape, np.random.default_rng(seed))
        assert tile.dtype == np.float32
        assert np.abs(tile).max() <= 1.5
        assert (tile.mean(), tile.std()) == pytest.approx((0, 0.5), abs=0.12)
        axes = np.meshgrid(*[np.fft.fftfreq(length) for length in tile.shape], indexing="ij", sparse=True)
        frequency = np.sqrt(sum(axis**2 for axis in axes))
        power = np.abs(np.fft.fftn(tile - tile.mean())) ** 2
        shares.append(power[frequency < 0.2].sum() / power.sum())
        finest.append(power[frequency > 0.4].sum() / power.sum())
    assert min(shares) > 0.5
    assert np.mean(shares) > 0.75
    assert max(finest) < 0.1
