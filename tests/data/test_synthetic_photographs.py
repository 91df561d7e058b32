import math
import sys

import numpy as np
import pytest
from PIL import Image

from adl_monai.data.synthetic import synthetic_volume
from adl_monai.data.synthetic.photographs import PHOTOGRAPHS, _pixels
from adl_monai.errors import UsageError


@pytest.mark.parametrize("shape", [(64, 48), (33, 47), (320, 320), (1, 9)])
def test_photographs_fill_every_2d_shape(shape):
    for seed in range(4):
        image = synthetic_volume(shape, seed, "photo")
        assert image.shape == shape
        assert image.dtype == np.float32
        assert 0 <= image.min() < image.max() <= 1
        assert np.array_equal(image, synthetic_volume(shape, seed, "photo"))
        assert not np.array_equal(image, synthetic_volume(shape, seed + 50, "photo"))


def test_photographs_are_there_and_compressed_ones_are_always_shrunk():
    for photograph in PHOTOGRAPHS:
        pixels = _pixels(photograph.file)
        assert pixels.dtype == np.uint8
        assert min(pixels.shape[:2]) >= 300
        assert photograph.largest_factor <= (0.7 if photograph.file.endswith(".jpg") else 1.0)


def small(image):
    """(16, 16), standardised."""
    reduced = np.asarray(Image.fromarray(image.astype(np.float32)).resize((16, 16), Image.Resampling.BOX))
    return (reduced - reduced.mean()) / reduced.std()


def test_an_image_larger_than_the_photograph_shows_it_whole_and_mirrored():
    originals = {}
    for photograph in PHOTOGRAPHS:
        pixels = _pixels(photograph.file)
        originals[photograph.file] = small(pixels.mean(axis=2) if pixels.ndim == 3 else pixels)
    found = set()
    for seed in range(12):
        image = synthetic_volume((2100, 2100), seed, "photo")
        rows = 1 + np.flatnonzero((image[1:] == image[:-1]).all(axis=1))
        columns = 1 + np.flatnonzero((image[:, 1:] == image[:, :-1]).all(axis=0))
        assert np.array_equal(image[rows[0] - 20 : rows[0]], image[rows[0] : rows[0] + 20][::-1])
        whole = small(image[rows[0] : rows[1], columns[0] : columns[1]])
        likeness = {
            file: max((np.rot90(turned, k) * original).mean() for k in range(4) for turned in (whole, whole.T))
            for file, original in originals.items()
        }
        best = max(likeness, key=likeness.get)
        assert likeness[best] > 0.9
        found.add(best)
        factor = (rows[1] - rows[0]) * (columns[1] - columns[0]) / math.prod(_pixels(best).shape[:2])
        assert 0.39**2 < factor <= next(one.largest_factor for one in PHOTOGRAPHS if one.file == best) ** 2
    assert len(found) >= 5


def test_photographs_are_clean_where_they_are_smooth():
    """In the smoothest tenth of the blocks (sky, wall, porcelain) there is less than 0.8 grey levels of noise."""
    smoothest = []
    for seed in range(30):
        image = synthetic_volume((256, 256), seed, "photo")
        finest = (image[1:, 1:] - image[:-1, 1:] - image[1:, :-1] + image[:-1, :-1])[:248, :248] / 2
        blocks = finest.reshape(31, 8, 31, 8).swapaxes(1, 2).reshape(-1, 64).std(axis=1)
        smoothest.append(np.percentile(blocks, 10))
    # All but the pictures of nothing but grass or gravel, a fifth.
    assert np.percentile(smoothest, 70) < 0.8 / 255


def test_photographs_refuse_volumes_and_say_what_they_need(monkeypatch):
    with pytest.raises(UsageError, match=r"8x8x8.*HxW"):
        synthetic_volume((8, 8, 8), seed=0, kind="photo")
    monkeypatch.setitem(sys.modules, "skimage", None)  # as if it were not installed
    _pixels.cache_clear()
    with pytest.raises(UsageError, match=r"scikit-image: pip install scikit-image"):
        synthetic_volume((8, 8), seed=0, kind="photo")
