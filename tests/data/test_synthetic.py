import importlib
import importlib.util
from itertools import pairwise

import numpy as np
import pytest

from adl_monai.data.synthetic import read_synthetic, synthetic_volume
from adl_monai.data.synthetic.fields import paint_sheets, paint_tubes, power_law_field
from adl_monai.data.synthetic.tissue import _resampled
from adl_monai.errors import UsageError

MODULE = importlib.import_module("adl_monai.data.synthetic.tissue")  # the package's "tissue" is the function


@pytest.mark.parametrize("shape", [(64, 64), (33, 47), (31, 17, 5), (40, 40, 40), (9, 1, 1)])
def test_values_fill_the_unit_range(shape):
    image = synthetic_volume(shape, seed=3)
    assert image.shape == shape
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert image.std() > 0.1


def test_same_seed_same_volume_and_other_seed_other_volume():
    volume = synthetic_volume((24, 20, 16), seed=3)
    assert np.array_equal(volume, synthetic_volume((24, 20, 16), seed=3))
    assert not np.array_equal(volume, synthetic_volume((24, 20, 16), seed=4))


def test_volume_does_not_change_between_runs():
    volume = synthetic_volume((24, 20, 16), seed=3).astype(np.float64)
    assert (volume.mean(), (volume**2).mean()) == pytest.approx((0.2823018, 0.1551117), abs=1e-6)
    assert (volume[12, 10, 8], volume[20, 15, 2]) == pytest.approx((0.2709469, 0.0962961), abs=1e-6)
    image = synthetic_volume((64, 48), seed=3).astype(np.float64)
    assert (image.mean(), (image**2).mean()) == pytest.approx((0.3178545, 0.1900659), abs=1e-6)


def test_there_is_background_and_there_are_edges_and_flat_regions():
    for seed in range(3):
        volume = synthetic_volume((48, 48, 48), seed=seed)
        steps = np.abs(np.diff(volume, axis=0))
        assert 0.1 < (volume < 0.1).mean() < 0.8
        assert (steps > 0.1).mean() > 0.01
        assert (steps == 0).mean() > 0.2


def test_specification_is_read():
    volume = read_synthetic("synthetic:kind=leaves,shape=12x9x5,seed=3")
    assert np.array_equal(volume.array, synthetic_volume((12, 9, 5), seed=3))
    assert np.array_equal(volume.affine, np.eye(4))
    assert volume.format == "synthetic"
    assert volume.dtype == np.float32
    assert str(volume.path) == "synthetic:kind=leaves,shape=12x9x5,seed=3"
    assert read_synthetic("synthetic:shape=8x8").array.shape == (8, 8)
    assert read_synthetic("synthetic:").array.shape == (64, 64, 64)


@pytest.mark.parametrize(
    "spec, field",
    [
        ("leaves", "synthetic:"),
        ("synthetic:kind=brain", "kind"),
        ("synthetic:shape=8", "shape"),
        ("synthetic:shape=8x8x8x8", "shape"),
        ("synthetic:shape=8x-8", "shape"),
        ("synthetic:shape=8x0", "shape"),
        ("synthetic:shape=9999x9999x9999", "shape"),
        ("synthetic:seed=-1", "seed"),
        ("synthetic:seed=1.5", "seed"),
        ("synthetic:seed=", "seed"),
        ("synthetic:seed=1,seed=2", "seed"),
        ("synthetic:size=8", "size"),
    ],
)
def test_bad_specification_names_the_field(spec, field):
    with pytest.raises(UsageError, match=field):
        read_synthetic(spec)


def test_bad_arguments_are_refused():
    with pytest.raises(UsageError, match="seed"):
        synthetic_volume((8, 8), seed=-1)
    with pytest.raises(UsageError, match="shape"):
        synthetic_volume((8,), seed=1)


EVERYWHERE = pytest.mark.parametrize("kind", ["leaves", "clouds", "layers", "scan", "textures", "vessels", "angiogram"])


@EVERYWHERE
@pytest.mark.parametrize("shape", [(64, 48), (33, 47), (24, 17, 5), (40, 40, 40), (9, 1, 1)])
def test_every_kind_makes_every_shape(kind, shape):
    image = synthetic_volume(shape, seed=3, kind=kind)
    assert image.shape == shape
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert 0 <= image.min() <= image.max() <= 1
    assert np.array_equal(image, synthetic_volume(shape, seed=3, kind=kind))
    assert not np.array_equal(image, synthetic_volume(shape, seed=4, kind=kind))


@EVERYWHERE
def test_kinds_carry_no_noise_of_their_own_that_a_denoiser_would_have_to_invent(kind):
    """A clean target is smoother than white noise of its own contrast at the finest scale."""
    for seed in range(4):
        volume = synthetic_volume((48, 48, 48), seed=seed, kind=kind)
        finest = volume[1:, 1:, 1:] - volume[:-1, 1:, 1:] - volume[1:, :-1, 1:] + volume[:-1, :-1, 1:]
        assert np.median(np.abs(finest)) / (0.6745 * 2) < 0.5 * volume.std()


def test_power_law_field_has_its_spectrum():
    field = power_law_field((96, 96, 96), 3.0, np.random.default_rng(0))
    power = np.abs(np.fft.fftn(field)) ** 2
    frequency = np.sqrt(sum(axis**2 for axis in np.meshgrid(*[np.fft.fftfreq(96)] * 3, indexing="ij", sparse=True)))
    edges = np.geomspace(0.03, 0.4, 9)
    means = [power[(frequency >= a) & (frequency < b)].mean() for a, b in pairwise(edges)]
    slope = np.polyfit(np.log(np.sqrt(edges[:-1] * edges[1:])), np.log(means), 1)[0]
    assert slope == pytest.approx(-3, abs=0.1)
    assert (field.mean(), field.std()) == pytest.approx((0, 1), abs=1e-4)


def boxes_hit(mask, edge):
    count = mask.shape[0] // edge
    return mask.reshape(count, edge, count, edge, count, edge).any(axis=(1, 3, 5)).sum()


def test_tubes_are_lines_and_sheets_are_surfaces():
    """Boxes of half the edge that a structure meets: twice as many for a line, 4 times for a surface, 8 for a solid.

    A structure has a thickness, which adds a little to each.
    """
    for paint, low, high in ((paint_tubes, 2.0, 3.5), (paint_sheets, 4.0, 5.2)):
        ratios = []
        for seed in range(3):
            image = np.full((96, 96, 96), -1.0, np.float32)  # no grey of a structure is negative
            paint(image, np.random.default_rng(seed))
            ratios.append(boxes_hit(image > -0.5, 8) / boxes_hit(image > -0.5, 16))
        assert low < np.mean(ratios) < high


@pytest.mark.parametrize("kind", ["tissue", "coarse_tissue"])
def test_tissue_is_a_head_or_says_what_it_needs(kind):
    if importlib.util.find_spec("nilearn") is None:
        with pytest.raises(UsageError, match="nilearn"):
            synthetic_volume((32, 32, 32), seed=0, kind=kind)
        return
    for shape in [(64, 48, 40), (160, 150), (250, 8, 8)]:
        image = synthetic_volume(shape, seed=1, kind=kind)
        assert image.shape == shape
        assert image.dtype == np.float32
        assert image.std() > 0.02
        assert np.array_equal(image, synthetic_volume(shape, seed=1, kind=kind))


@pytest.mark.parametrize("shape", [(40, 30, 20), (50, 40)])
def test_a_coarse_head_is_a_larger_box_of_the_fine_one_in_its_own_voxels(monkeypatch, shape):
    boxes = []

    def ramp_along_the_first_axis(box, rng):
        boxes.append(box)
        return np.broadcast_to(np.linspace(0, 1, box[0]).reshape(-1, *[1] * (len(box) - 1)), box).astype(np.float32)

    monkeypatch.setattr(MODULE, "_head", ramp_along_the_first_axis)
    monkeypatch.setattr(MODULE, "as_scanned", lambda image, rng, cut_out: image)
    for seed in range(40):
        image = synthetic_volume(shape, seed=seed, kind="coarse_tissue")
        assert image.shape == shape
        profile = image.reshape(shape[0], -1).mean(1)
        # The whole box was shrunk, not cut: the ramp still rises from end to end, but for the smoothing of its ends.
        np.testing.assert_allclose(profile, np.linspace(0, 1, shape[0]), atol=0.03)
    sizes = np.array(boxes) / shape
    assert sizes.min() >= 1.2
    assert sizes.max() < 2.2 + 1 / min(shape)
    isotropic = np.ptp(sizes, axis=1) < 1 / min(shape)
    assert 0.2 < isotropic.mean() < 0.8


def test_coarse_voxels_keep_what_they_can_hold_and_lose_what_they_cannot():
    coarse, fine = (np.arange(n) + 0.5 for n in (20, 30))  # voxels' centres; 1.5 fine ones are a coarse one
    flat = np.full((30, 15), 0.7, np.float32)
    np.testing.assert_allclose(_resampled(flat, (20, 10)), 0.7, atol=1e-6)
    for half_waves in (1, 8, 19):
        wave = np.cos(np.pi * half_waves * fine / 30)[:, None] * np.ones(15)
        expected = np.cos(np.pi * half_waves * coarse / 20)[:, None] * np.ones(10)
        np.testing.assert_allclose(_resampled(wave, (20, 10)), expected, atol=1e-6)
    too_fine = np.cos(np.pi * 23 * fine / 30)[:, None] * np.ones(15)
    np.testing.assert_allclose(_resampled(too_fine, (20, 10)), 0, atol=1e-6)
