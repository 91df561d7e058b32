import importlib

import numpy as np
import pytest

from adl_monai.data.synthetic.scan import as_scanned
from adl_monai.data.synthetic.vessels import (
    BENDS,
    CONTRASTS,
    LENGTHS,
    SPOT_WIDTHS,
    STEP,
    _add,
    _add_spot,
    _add_vessel,
    vessels,
)

MODULE = importlib.import_module("adl_monai.data.synthetic.vessels")  # its function has the same name
SHAPES = pytest.mark.parametrize("shape", [(60, 41), (40, 31, 25)])


@pytest.fixture
def added(monkeypatch):
    """Calls of ``_add``: what was drawn to, the points and the height at a distance from them."""
    calls = []

    def spy(image, points, reach, height):
        calls.append((image.shape, points, height))
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
    for _, points, height in added:
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
        for _, points, _ in added:
            steps = np.diff(points, axis=0)
            np.testing.assert_allclose(np.linalg.norm(steps, axis=1), STEP)
            assert len(points) * STEP == 96
            assert ((points > 0) & (points < 96)).all(axis=1).any()
            turns = (steps[1:] * steps[:-1]).sum(axis=1) / STEP**2  # cosines
            # The greatest turn is that of a kick on a direction that is not yet long: some six deviations.
            assert turns.min() > (0.9999 if bend == 0 else 0.3)
            assert np.median(turns) > 0.97
    ends = [points[-1] - points[0] for _, points, _ in added]
    assert np.mean(np.linalg.norm(ends, axis=1)) < 0.9 * 96  # the bent ones, that is


def test_heights_are_those_that_were_drawn(added):
    image = np.zeros((48, 48, 48), np.float32)
    for seed in range(200):
        _add_vessel(image, np.random.default_rng(seed))
        _add_spot(image, np.random.default_rng(seed))
    lines, spots = ([height(np.full((len(points), 1), 0.0)).max() for _, points, height in added[i::2]] for i in (0, 1))
    low, high = CONTRASTS
    # A line thinner than its soft edge stays below its contrast: 0.3 / 1.2 over a half at the least.
    assert 0.75 * low < min(lines) < max(lines) <= high
    assert low < min(spots) < max(spots) < high
    for heights in (lines, spots):
        assert np.median(heights) == pytest.approx(np.sqrt(low * high), rel=0.25)  # faint ones as often as strong ones
    widths = [np.sqrt(-0.5 / np.log(height(np.ones(1)) / height(np.zeros(1)))) for _, _, height in added[1::2]]
    assert SPOT_WIDTHS[0] < np.min(widths) < np.max(widths) < SPOT_WIDTHS[1]


@pytest.mark.parametrize("shape", [(160, 160), (64, 64, 64)])
def test_images_have_vessels_bright_or_dark_on_what_was_there(monkeypatch, shape):
    monkeypatch.setattr(MODULE, "as_scanned", lambda image, rng, cut_out: image)
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


def test_a_scanner_sees_them(monkeypatch):
    cuts = []

    def seen(image, rng, cut_out):
        cuts.append(cut_out)
        return as_scanned(image, rng, cut_out)

    monkeypatch.setattr(MODULE, "as_scanned", seen)
    vessels((32, 32), np.random.default_rng(0))
    assert cuts == [0.3]
