import time

import numpy as np
import pytest

from adl_monai.data.synthetic import read_synthetic, synthetic_volume
from adl_monai.errors import UsageError


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


def test_there_is_background_and_there_are_edges_and_flat_regions():
    for seed in range(3):
        volume = synthetic_volume((48, 48, 48), seed=seed)
        steps = np.abs(np.diff(volume, axis=0))
        assert 0.1 < (volume < 0.1).mean() < 0.8
        assert (steps > 0.1).mean() > 0.01
        assert (steps == 0).mean() > 0.2


def test_64_cubed_is_made_in_a_moment():
    start = time.perf_counter()
    synthetic_volume((64, 64, 64), seed=0)
    assert time.perf_counter() - start < 1.5


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
