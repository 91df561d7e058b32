import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandSpatialCropd

from adl_monai.data import CleanAsLabeld, RandDegraded, RandNoisyRanged, SampledIntensitiesd
from adl_monai.data.degradations import Degradation
from adl_monai.data.normalization import robust_range
from adl_monai.data.synthetic import synthetic_volume


def clean_volume():
    return torch.from_numpy(synthetic_volume((48, 40, 32), seed=3, kind="scan"))[None]


def chain(kind, sigma, patch):
    return Compose(
        [
            SampledIntensitiesd(),
            RandSpatialCropd("image", roi_size=patch, random_size=False),
            CleanAsLabeld(),
            RandDegraded(kinds=[kind], sigma_range=(sigma, sigma), record=True),
            RandNoisyRanged(["image", "label"]),
        ]
    )


@pytest.mark.parametrize("kind", ["gaussian", "rician", "poisson", "mixed"])
@pytest.mark.parametrize("sigma", [0.02, 0.2])
def test_a_patch_is_on_the_scale_that_inference_gives_its_image(kind, sigma):
    clean = clean_volume()
    case = chain(kind, sigma, clean.shape[1:]).set_random_state(seed=1)({"image": clean})
    offset, scale = robust_range(Degradation(kind, sigma, 5).apply(clean))
    # What maps the patch's label back to the clean image is that range.
    slope, start = np.polyfit(np.asarray(case["label"]).ravel(), np.asarray(clean).ravel(), 1)
    assert slope == pytest.approx(scale, rel=0.05)
    assert start == pytest.approx(offset, abs=0.02 + 0.1 * sigma)
    assert set(case) == {"image", "label", "degrade"}


def test_both_move_together_so_that_the_noise_stays_the_noise():
    clean = clean_volume()
    case = chain("gaussian", 0.1, (24, 24, 24)).set_random_state(seed=1)({"image": clean})
    noise = torch.as_tensor(case["image"] - case["label"])
    scale = robust_range(Degradation("gaussian", 0.1, 5).apply(clean))[1]
    assert noise.std() * scale == pytest.approx(0.1, rel=0.05)
    assert abs(noise.mean() * scale) < 0.005


def test_a_fixed_range_is_not_that_of_the_noisy_image():
    clean = clean_volume()
    steps = chain("gaussian", 0.1, (24, 24, 24))
    steps.transforms = (*steps.transforms[:-1], RandNoisyRanged(["image", "label"], fixed=True))
    case = steps.set_random_state(seed=1)({"image": clean})
    noise = torch.as_tensor(case["image"] - case["label"])
    assert noise.std() == pytest.approx(0.1, rel=0.05)
    assert set(case) == {"image", "label", "degrade"}


def test_pairs_and_constant_images_pass():
    pair = {"image": torch.rand(1, 8, 8), "label": torch.rand(1, 8, 8)}
    steps = [SampledIntensitiesd(), CleanAsLabeld(), RandDegraded(record=True), RandNoisyRanged(["image", "label"])]
    case = Compose(steps)(pair)
    assert torch.equal(case["image"], pair["image"])
    assert torch.equal(case["label"], pair["label"])
    steps[2] = RandDegraded(sigma_range=(0, 0), record=True)
    flat = Compose(steps)({"image": torch.full((1, 8, 8), 0.3)})
    assert not torch.as_tensor(flat["label"]).any()  # as in inference: a constant image is 0


def test_the_sample_is_spread_over_the_image_and_not_a_view_of_it():
    ramp = torch.arange(64 * 50 * 40, dtype=torch.float32).reshape(1, 64, 50, 40)
    sample = SampledIntensitiesd()({"image": ramp})["intensities"]
    assert len(sample) == len(set(sample.tolist())) == 8192
    assert np.histogram(sample, 8)[0].std() < 10
    for axis_length in (40, 50 * 40):
        assert np.histogram(sample % axis_length, 8)[0].min() > 900
    sample.zero_()
    assert ramp.any()
    small = SampledIntensitiesd()({"image": torch.arange(9.0).reshape(1, 3, 3)})["intensities"]
    assert len(small) == 9


def test_jitter_moves_noisy_and_clean_by_one_map_of_the_announced_size():
    clean = clean_volume()
    plain = chain("gaussian", 0.1, (24, 24, 24))
    moved = Compose([*plain.transforms[:-1], RandNoisyRanged(["image", "label"], jitter=0.5)])
    maps = []
    for seed in range(40):
        a = plain.set_random_state(seed=seed)({"image": clean})
        b = moved.set_random_state(seed=seed)({"image": clean})
        slope, start = np.polyfit(np.ravel(a["label"]), np.ravel(b["label"]), 1)
        np.testing.assert_allclose(np.asarray(a["image"]) * slope + start, np.asarray(b["image"]), atol=1e-4)
        maps.append((slope, start))
    slopes, starts = np.array(maps).T
    still = np.isclose(slopes, 1) & np.isclose(starts, 0, atol=1e-5)
    assert 10 < still.sum() < 30
    assert 0.7 < slopes.min() < 0.8 < 1.25 < slopes.max() < 1.415
    assert -0.4 < starts.min() < -0.2 < 0.2 < starts.max() < 0.4
