import importlib

import numpy as np
import pytest

from adl_monai.data.synthetic.scan import as_scanned
from adl_monai.data.synthetic.vessels import (
    BENDS,
    BLURS,
    CONTRASTS,
    CUTS,
    EDGES,
    GRAINS,
    LENGTHS,
    RADII,
    SPOT_WIDTHS,
    STEP,
    _add,
    _add_spot,
    _add_vessel,
    angiogram,
    vessels,
)

MODULE = importlib.import_module("adl_monai.data.synthetic.vessels")  # its function has the same name
SHAPES = pytest.mark.parametrize("shape", [(60, 41), (40, 31, 25)])


@pytest.fixture
def added(monkeypatch):
    """Calls of ``_add``: the points, and the height at a distance from them."""
    calls = []

    def spy(image, points, reach, height):
        calls.append((points, height))
        _add(image, points, reach, height)

    monkeypatch.setattr(MODULE, "_add", spy)
    return calls


@SHAPES
@pytest.mark.parametrize("draw", [_add_vessel, _add_spot])
def test_what_is_drawn_is_the_greatest_height_over_all_points_and_all_voxels(added, shape, draw):
    image = np.zeros(shape, np.float32)
    for seed in range(6):
        draw(image, np.random.default_rng(seed))
    voxels = np.stack(np.indices(shape), axis=-1).reshape(-1, len(shape))
    expected = np.zeros(len(voxels))
    for points, height in added:
        distance = np.linalg.norm(voxels - points[:, None], axis=-1)
        np.maximum(expected, height(distance).max(axis=0), out=expected)
    # A spot's edge has no end; it is cut where hardly anything of it is left.
    atol = 1e-6 if draw is _add_vessel else 0.003 * CONTRASTS[1]
    np.testing.assert_allclose(image, expected.reshape(shape), atol=atol)
    assert image.any()


def test_a_vessel_goes_on_in_small_steps_and_bends_slowly(added, monkeypatch):
    image = np.zeros((96, 96, 96), np.float32)
    for bend in BENDS:
        monkeypatch.setattr(MODULE, "BENDS", (bend, bend))
        del added[:]
        for seed in range(8):
            _add_vessel(image, np.random.default_rng(seed))
        for points, _ in added:
            steps = np.diff(points, axis=0)
            np.testing.assert_allclose(np.linalg.norm(steps, axis=1), STEP)
            assert len(points) * STEP == 96
            assert ((points > 0) & (points < 96)).all(axis=1).any()
            turns = (steps[1:] * steps[:-1]).sum(axis=1) / STEP**2  # cosines
            # The greatest turn is that of a kick on a direction that is not yet long: some six deviations.
            assert turns.min() > (0.9999 if bend == 0 else 0.3)
            assert np.median(turns) > 0.97
    ends = [points[-1] - points[0] for points, _ in added]
    assert np.mean(np.linalg.norm(ends, axis=1)) < 0.9 * 96  # the bent ones, that is


def test_heights_are_those_that_were_drawn(added):
    image = np.zeros((48, 48, 48), np.float32)
    for seed in range(200):
        _add_vessel(image, np.random.default_rng(seed))
        _add_spot(image, np.random.default_rng(seed))
    lines, spots = ([height(np.full((len(points), 1), 0.0)).max() for points, height in added[i::2]] for i in (0, 1))
    low, high = CONTRASTS
    # A line thinner than its soft edge stays below its contrast: 0.3 / 1.2 over a half at the least.
    assert 0.75 * low < min(lines) < max(lines) <= high
    assert low < min(spots) < max(spots) < high
    for heights in (lines, spots):
        assert np.median(heights) == pytest.approx(np.sqrt(low * high), rel=0.25)  # faint ones as often as strong ones
    widths = [np.sqrt(-0.5 / np.log(height(np.ones(1)) / height(np.zeros(1)))) for _, height in added[1::2]]
    assert SPOT_WIDTHS[0] < np.min(widths) < np.max(widths) < SPOT_WIDTHS[1]


@pytest.mark.parametrize("shape", [(160, 160), (64, 64, 64)])
def test_images_have_vessels_bright_or_dark_on_what_was_there(monkeypatch, shape):
    monkeypatch.setattr(MODULE, "as_scanned", lambda image, rng, cut_out, blurred: image)
    with_them = [vessels(shape, np.random.default_rng(seed)) for seed in range(24)]
    for name in ("_add_vessel", "_add_spot"):
        monkeypatch.setattr(MODULE, name, lambda added, rng: None)
    without = [vessels(shape, np.random.default_rng(seed)) for seed in range(24)]
    changes = np.stack(with_them) - np.stack(without)
    bright = [change.sum() > 0 for change in changes]
    assert all((change >= 0).all() if up else (change <= 0).all() for change, up in zip(changes, bright, strict=True))
    assert 0.5 < np.mean(bright) < 0.9
    # A vessel covers a few voxels to each of its length, and most have left the image before their end.
    low, high = LENGTHS[len(shape)]
    assert 0.3 * low < np.median([(np.abs(change) > 0.01).mean() for change in changes]) < 5 * high


@pytest.mark.parametrize("shape", [(160, 160), (64, 64, 64)])
def test_an_angiogram_is_vessels_in_the_dark_of_which_the_faint_are_cut_away_in_two_of_three(shape):
    cut, dark = 0, []
    for seed in range(48):
        image = angiogram(shape, np.random.default_rng(seed))
        present = image[image > 0]
        dark.append((image < 0.02).mean())
        least = present.min() / present.max()
        cut += least >= CUTS[0]
        assert least < CUTS[1] + 0.02  # the rest is dimmer than the brightest, and there
    assert 0.5 < cut / 48 < 0.85
    assert np.median(dark) > 0.5


def test_vessels_of_an_angiogram_are_thin_and_wide(monkeypatch):
    monkeypatch.setattr(MODULE, "as_scanned", lambda image, rng, cut_out, blurred: image)
    together = np.stack([angiogram((64, 64, 64), np.random.default_rng(seed)) for seed in range(12)])
    for name in ("_add_vessel", "_add_spot"):
        monkeypatch.setattr(MODULE, name, lambda added, rng: None)
    wide = np.stack([angiogram((64, 64, 64), np.random.default_rng(seed)) for seed in range(12)])
    assert (wide > 0.02).any(axis=(1, 2, 3)).all()
    assert ((together > 0.02) & (wide < 0.02)).any(axis=(1, 2, 3)).mean() > 0.9


def test_what_a_scanner_makes_of_them_is_returned(monkeypatch):
    seen = []
    monkeypatch.setattr(MODULE, "as_scanned", lambda image, rng, cut_out, blurred: seen.append(image) or image / 2)
    for seed in range(8):
        image = vessels((40, 40), np.random.default_rng(seed))
        assert np.array_equal(image, seen[-1] / 2)
        assert seen[-1].dtype == np.float32
        assert 0 <= seen[-1].min() < seen[-1].max() <= 1


def test_vessels_are_thin_and_taper(added):
    """A line's profile, integrated from its middle, is its radius, where that is at least half the soft edge."""
    distances = (np.arange(400) + 0.5) / 100
    starts, ends = [], []
    for seed in range(100):
        _add_vessel(np.zeros((24, 24), np.float32), np.random.default_rng(seed))
        points, height = added[-1]
        profile = height(np.tile(distances, (len(points), 1)))
        if profile[-1, 0] == profile[0, 0]:  # full height in the middle, from end to end
            radii = profile.sum(axis=1) / 100 / profile[0, 0]
            starts.append(radii[0])
            ends.append(radii[-1] / radii[0])
            assert (np.diff(radii) <= 1e-9).all()
            edge = np.diff(distances[[np.argmax(profile[0] < 0.999 * profile[0, 0]), np.argmin(profile[0])]])
            assert EDGES[0] - 0.03 < edge < EDGES[1] + 0.03
    assert len(starts) > 40
    assert RADII[0] < min(starts) < 0.6
    assert 1.2 < max(starts) < RADII[1] + 0.01
    assert 0.5 <= min(ends) < 0.6
    assert 0.9 < max(ends) <= 1


def test_a_quarter_of_the_backgrounds_have_fine_texture(monkeypatch):
    monkeypatch.setattr(MODULE, "as_scanned", lambda image, rng, cut_out, blurred: image)
    monkeypatch.setattr(MODULE, "tissue_mosaic", lambda shape, rng: np.full(shape, 0.5, np.float32))
    for name in ("_add_vessel", "_add_spot"):
        monkeypatch.setattr(MODULE, name, lambda added, rng: None)
    fine = []
    for seed in range(120):
        image = vessels((96, 96), np.random.default_rng(seed))
        fine.append((image[1:, 1:] - image[:-1, 1:] - image[1:, :-1] + image[:-1, :-1]).std())
    textured = [size for size in fine if size > 0.1 * GRAINS[0]]
    assert 0.13 < len(textured) / len(fine) < 0.37
    assert GRAINS[0] < np.median(textured) < 2 * GRAINS[1]


def test_thin_vessels_are_as_frequent_as_wide_ones(monkeypatch):
    reaches = []
    monkeypatch.setattr(MODULE, "_add", lambda image, points, reach, height: reaches.append(reach))
    monkeypatch.setattr(MODULE, "EDGES", (0.5, 0.5))
    for seed in range(200):
        _add_vessel(np.zeros((24, 24), np.float32), np.random.default_rng(seed))
    radii = np.array(reaches) - 0.25
    assert RADII[0] <= radii.min() < radii.max() <= RADII[1]
    assert np.median(radii) == pytest.approx(np.sqrt(RADII[0] * RADII[1]), rel=0.1)


def test_half_of_the_images_are_hardly_blurred(monkeypatch):
    blurs = []
    monkeypatch.setattr(MODULE, "as_scanned", lambda image, rng, cut_out, blurred: blurs.append(blurred) or image)
    for seed in range(80):
        vessels((24, 24), np.random.default_rng(seed))
    assert set(blurs) == set(BLURS)
    assert 0.35 < np.mean(np.array(blurs) == BLURS[0]) < 0.65


def test_the_scanner_blurs_no_more_than_it_is_told():
    """By the variance of the blurred image of a point, in voxels: that of the pixels themselves is not in it."""
    image = np.zeros((41, 41), np.float32)
    image[20, 20] = 1.0
    places = np.arange(41) - 20
    widths = []
    for seed in range(60):
        seen = as_scanned(image, np.random.default_rng(seed), cut_out=0.0, blurred=0.6)
        profile = seen.sum(axis=0)
        widths.append(np.sqrt((profile * places**2).sum() / profile.sum()))
    assert 0.5 < max(widths) <= 0.65
    assert np.median(widths) < 0.4
