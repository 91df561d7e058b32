import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, RandFlipd, RandRotate90d, RandSpatialCropd, SpatialPadd, SqueezeDimd

from adl_monai.data.degradations import RandDegraded
from adl_monai.data.transforms import BlendStrengthd, CleanAsLabeld, EnsureDepthd


def image(shape, seed=0):
    return MetaTensor(torch.rand(shape, generator=torch.Generator().manual_seed(seed)))


def test_clean_image_becomes_an_independent_label():
    clean = image((1, 5, 7))
    case = CleanAsLabeld()({"image": clean})
    assert case["degrade"] is True
    assert torch.equal(case["label"], clean)
    case["label"].zero_()
    assert case["image"].any()


def test_pair_keeps_its_label():
    noisy, clean = image((1, 5, 7)), image((1, 5, 7), seed=1)
    case = CleanAsLabeld()({"image": noisy, "label": clean})
    assert case["degrade"] is False
    assert case["label"] is clean
    assert case["image"] is noisy


def random_chain(keys, roi_size):
    return Compose(
        [
            RandSpatialCropd(keys, roi_size=roi_size, random_size=False, allow_missing_keys=True),
            *(RandFlipd(keys, prob=0.5, spatial_axis=axis, allow_missing_keys=True) for axis in range(3)),
            RandRotate90d(keys, prob=0.5, allow_missing_keys=True),
            CleanAsLabeld(),
            RandDegraded(sigma_range=(0.1, 0.2)),
        ]
    )


def test_pairs_stay_pairs_under_crops_flips_and_rotations():
    noisy = image((1, 17, 15, 13))
    chain = random_chain(["image", "label"], (6, 6, 6))
    for seed in range(20):
        case = chain.set_random_state(seed=seed)({"image": noisy, "label": noisy + 10})
        torch.testing.assert_close(case["label"], case["image"] + 10)
        assert case["image"].shape == (1, 6, 6, 6)


def test_clean_cases_get_noise_on_the_image_alone():
    clean = image((1, 17, 15, 13))
    case = random_chain(["image", "label"], (6, 6, 6)).set_random_state(seed=3)({"image": clean})
    noise = (case["image"] - case["label"]).as_tensor()
    assert 0.07 < noise.std() < 0.25
    assert set(case["label"].flatten().tolist()) <= set(clean.flatten().tolist())


def test_depth_is_added_to_2d_only_and_taken_away_again():
    transform = EnsureDepthd(keys=["image", "volume"])
    flat, volume = image((1, 5, 7)), image((1, 5, 7, 1))
    case = transform({"image": flat, "volume": volume})
    assert case["image"].shape == (1, 5, 7, 1)
    assert case["volume"].shape == (1, 5, 7, 1)
    assert flat.applied_operations == volume.applied_operations == []
    returned = transform.inverse(case)
    assert torch.equal(returned["image"], flat)
    assert torch.equal(returned["volume"], volume)
    with pytest.raises(ValueError, match="shape"):
        EnsureDepthd(keys="image")({"image": torch.zeros(5, 7)})


def test_invertd_returns_a_2d_prediction_to_2d():
    preprocessing = Compose(
        [EnsureDepthd(keys="image"), SpatialPadd(keys="image", spatial_size=(8, 8, 4), mode="symmetric")]
    )
    flat = image((1, 5, 7))
    case = preprocessing({"image": flat})
    assert case["image"].shape == (1, 8, 8, 4)
    case["pred"] = case["image"].clone()
    pred = Invertd(keys="pred", transform=preprocessing, orig_keys="image", nearest_interp=False)(case)["pred"]
    assert torch.equal(pred, flat)


@pytest.mark.parametrize("shape", [(1, 20, 18), (1, 20, 18, 9)])
def test_monai_crops_random_slices_of_images_and_volumes(shape):
    chain = Compose(
        [
            EnsureDepthd(keys="image"),
            RandSpatialCropd(keys="image", roi_size=(8, 8, 1), random_size=False),
            SqueezeDimd(keys="image", dim=-1),
        ]
    ).set_random_state(seed=0)
    whole = image(shape)
    windows = whole.as_tensor().reshape(1, 20, 18, -1).unfold(1, 8, 1).unfold(2, 8, 1)
    depths = set()
    for _ in range(30):
        patch = chain({"image": whole})["image"].as_tensor()
        assert patch.shape == (1, 8, 8)
        found = (windows == patch.reshape(1, 1, 1, 1, 8, 8)).all(-1).all(-1).nonzero()
        assert len(found) == 1
        depths.add(found[0, 3].item())
    assert len(depths) == 1 if len(shape) == 3 else len(depths) > 3


def test_monai_pads_thin_volumes_by_reflection_beyond_their_size():
    thin = image((1, 5, 9, 4))
    transform = SpatialPadd(keys="image", spatial_size=(32, 8, 32), mode="symmetric")
    padded = transform({"image": thin})["image"]
    assert padded.shape == (1, 32, 9, 32)
    before = (32 - 4) // 2
    line = padded[0, 20, 3].as_tensor()
    reflected = torch.cat([line[before : before + 4], line[before : before + 4].flip(0)])
    assert torch.equal(line, reflected.roll(before % 8).repeat(4))
    assert torch.equal(transform.inverse({"image": padded})["image"], thin)


def test_strength_blends_between_noisy_and_denoised():
    noisy, denoised = image((1, 5, 7)), image((1, 5, 7), seed=1)
    data = {"image": noisy, "pred": denoised}
    full = BlendStrengthd(strength=1.0)(data)["pred"]
    assert full is denoised
    assert torch.equal(BlendStrengthd(strength=0.0)(data)["pred"], noisy)
    half = BlendStrengthd(strength=0.25)(data)["pred"]
    torch.testing.assert_close(half, noisy + 0.25 * (denoised - noisy))
    assert isinstance(half, MetaTensor)
    assert data["pred"] is denoised


def test_a_constant_image_comes_back_whatever_the_strength():
    noisy, denoised = image((1, 5, 7)), image((1, 5, 7), seed=1)
    noisy.meta["constant_image"] = True
    assert torch.equal(BlendStrengthd()({"image": noisy, "pred": denoised})["pred"], noisy)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_strength_outside_its_range_is_refused(strength):
    with pytest.raises(ValueError, match="strength"):
        BlendStrengthd(strength=strength)


def test_blending_refuses_different_shapes():
    with pytest.raises(ValueError, match="shape"):
        BlendStrengthd(strength=0.5)({"image": image((1, 5, 7)), "pred": image((1, 5, 1))})
