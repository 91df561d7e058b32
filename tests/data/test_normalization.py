import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, Flipd, Invertd, SpatialPadd

from adl_monai.data.normalization import RobustNormalized, denormalize, in_fixed_range, normalize, robust_range
from adl_monai.errors import ScanFileError

ODD = (1, 7, 13, 5)


def scan(shape=ODD, seed=0, scale=1000.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32)) * scale


def test_percentiles_map_to_zero_and_one_and_outliers_survive():
    image = torch.arange(1001, dtype=torch.float32).reshape(1, 7, 11, 13)
    image[0, 0, 0, 0] = 1e6
    offset, scale = robust_range(image)
    low, high = np.percentile(image.numpy(), (0.5, 99.5))
    assert (offset, scale) == pytest.approx((low, high - low))
    normalised = normalize(image, offset, scale)
    assert normalised.dtype == torch.float32
    assert normalised.max() > 900
    assert (normalised < 0).any()


@pytest.mark.parametrize(
    "stored",
    [
        torch.arange(-32768, 32768, dtype=torch.int16).reshape(1, 256, 256),
        torch.arange(65536, dtype=torch.int32).reshape(1, 256, 256),
        (1e6 + torch.linspace(-10, 10, 999, dtype=torch.float64)).to(torch.float32).reshape(1, 27, 37),
    ],
    ids=["int16", "uint16", "large offset"],
)
def test_round_trip_is_exact_where_float32_can_be(stored):
    offset, scale = robust_range(stored)
    returned = denormalize(normalize(stored, offset, scale), offset, scale)
    if stored.is_floating_point():
        assert torch.equal(returned, stored)
    else:
        assert torch.equal(returned.round().to(stored.dtype), stored)
        assert (returned - stored).abs().max() < 0.05


def test_round_trip_of_real_values_loses_only_float32_rounding():
    image = scan(scale=3e4) ** 3
    offset, scale = robust_range(image)
    returned = denormalize(normalize(image, offset, scale), offset, scale)
    step = torch.maximum(image.abs(), torch.tensor(abs(offset) + scale)) * torch.finfo(torch.float32).eps
    assert ((returned - image).abs() <= 2 * step).all()


def test_normalised_values_do_not_depend_on_unit_or_offset():
    image = scan(scale=1.0)
    plain = normalize(image, *robust_range(image))
    changed = image * 1000 + 500
    torch.testing.assert_close(normalize(changed, *robust_range(changed)), plain, atol=1e-5, rtol=0)


def test_sparse_image_falls_back_to_its_extremes():
    image = torch.zeros(1, 20, 20, 20)
    image[0, 3, 4, 5] = 7.0
    assert robust_range(image) == (0.0, 7.0)


def test_sampling_of_large_images_is_deterministic_and_not_aliased():
    # Bright planes, 1 of 4 along the fastest axis: any step that shares a factor with 64 would see too many or none.
    large = np.zeros((192, 192, 64), dtype=np.float32)
    large[..., ::4] = 100.0
    large += np.random.default_rng(0).random(large.shape, dtype=np.float32)
    sampled = robust_range(large, 10.0, 65.0)
    assert sampled == robust_range(torch.from_numpy(large), 10.0, 65.0)
    low, high = np.percentile(large, (10.0, 65.0))
    assert sampled == pytest.approx((low, high - low), rel=0.01)


def test_constant_image_is_signalled_and_maps_to_zero():
    image = MetaTensor(torch.full(ODD, -3.25))
    assert robust_range(image) == (-3.25, 0.0)
    with pytest.raises(ValueError, match="constant"):
        normalize(image, -3.25, 0.0)
    transform = RobustNormalized(keys="image")
    case = transform({"image": image})
    assert (case["image"] == 0).all()
    assert case["image"].meta["constant_image"] is True
    assert case["image"].meta["intensity_scale"] == 1.0
    assert torch.equal(transform.inverse(case)["image"].as_tensor(), image.as_tensor())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_without_a_finite_range_are_refused(bad):
    with pytest.raises(ScanFileError, match="not finite"):
        robust_range(torch.full((1, 4, 4), bad))


def test_a_fixed_range_maps_all_images_alike_and_back():
    images = {"image": scan(scale=300.0), "label": scan(seed=1, scale=3.0)}
    case = RobustNormalized(["image", "label"], fixed=(-1024, 3071))(images)
    for key, image in images.items():
        torch.testing.assert_close(torch.as_tensor(case[key]), (image + 1024) / 4095)
    assert in_fixed_range((3.0, 5.0), None) == (3.0, 5.0)
    assert in_fixed_range((3.0, 0.0), (0, 255)) == (3.0, 0.0)  # a constant image
    assert in_fixed_range((3.0, 1000.0), (0, 255)) == (0.0, 255.0)


@pytest.mark.parametrize("scale", [1.0, 65535.0])
def test_another_unit_than_that_of_the_fixed_range_is_refused(scale):
    with pytest.raises(ScanFileError, match=f"between 0 and {scale:.6g}, but .* between 0 and 255; convert"):
        in_fixed_range((0.0, scale), (0, 255))


@pytest.mark.parametrize("fixed", [(255, 0), (0, 0), (0, float("inf"))])
def test_what_is_no_fixed_range_is_refused(fixed):
    with pytest.raises(ValueError, match="two finite numbers that rise"):
        RobustNormalized("image", fixed=fixed)


def test_wrong_percentiles_and_empty_images_are_refused():
    with pytest.raises(ValueError, match="percentiles"):
        robust_range(scan(), 60.0, 40.0)
    with pytest.raises(ValueError, match="no voxels"):
        robust_range(torch.zeros(1, 0, 4))


def test_pair_shares_the_map_of_the_reference():
    noisy, clean = scan(seed=1), scan(seed=2, scale=10.0)
    case = RobustNormalized(keys=["image", "label"])({"image": MetaTensor(noisy), "label": MetaTensor(clean)})
    offset, scale = robust_range(noisy)
    assert case["label"].meta["intensity_offset"] == offset
    torch.testing.assert_close(case["label"].as_tensor(), (clean - offset) / scale)
    by_label = RobustNormalized(keys=["image", "label"], reference_key="label")({"image": noisy, "label": clean})
    assert by_label["image"].meta["intensity_scale"] == robust_range(clean)[1]


def test_missing_keys_are_an_error_unless_allowed():
    with pytest.raises(KeyError, match="label"):
        RobustNormalized(keys=["image", "label"])({"image": scan()})
    case = RobustNormalized(keys=["image", "label"], allow_missing_keys=True)({"image": scan()})
    assert set(case) == {"image"}
    with pytest.raises(KeyError, match="intensity range"):
        RobustNormalized(keys="image", reference_key="label")({"image": scan()})


def test_input_case_is_left_alone():
    image = MetaTensor(scan(), meta={"filename_or_obj": "a"})
    before = image.as_tensor().clone()
    data = {"image": image}
    RobustNormalized(keys="image")(data)
    assert data["image"] is image
    assert torch.equal(image.as_tensor(), before)
    assert image.applied_operations == []
    assert "intensity_scale" not in image.meta


@pytest.mark.parametrize("shape", [ODD, (2, 9, 11)])
def test_invertd_returns_predictions_of_odd_scans_to_stored_values(shape):
    images = [scan(shape, seed=1, scale=800.0), scan(shape, seed=2, scale=3.0) + 40]
    padded = (16, 16, 16)[: len(shape) - 1]
    preprocessing = Compose(
        [
            Flipd(keys="image", spatial_axis=0),
            RobustNormalized(keys="image"),
            SpatialPadd(keys="image", spatial_size=padded, mode="symmetric"),
        ]
    )
    invert = Invertd(keys="pred", transform=preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True)
    cases = [{"image": MetaTensor(image, meta={"filename_or_obj": str(i)})} for i, image in enumerate(images)]
    batch = next(iter(DataLoader(Dataset(cases, preprocessing), batch_size=2)))
    assert batch["image"].shape == (2, shape[0], *padded)
    batch["pred"] = batch["image"] + 0.25  # a MetaTensor: Invertd passes plain tensors by with a warning
    for case, image in zip(decollate_batch(batch), images, strict=True):
        offset, scale = robust_range(image)
        meta = case["image"].meta
        assert (float(meta["intensity_offset"]), float(meta["intensity_scale"])) == (offset, scale)
        assert not bool(meta["constant_image"])
        pred = invert(case)["pred"]
        assert pred.shape == image.shape
        torch.testing.assert_close(pred.as_tensor(), image + 0.25 * scale, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("offset, scale", [(-1.7, 3.3), (0.123, 7.0), (-1024.3, 2071.7)])
def test_zeros_come_back_as_zeros(offset: float, scale: float) -> None:
    """Masks are made by asking for them, and the rounding of the offset would leave 1e-7."""
    image = torch.linspace(offset, offset + scale, 1001)
    image[::7] = 0
    found = denormalize(normalize(image, offset, scale), offset, scale)
    assert torch.equal(found == 0, image == 0)
    torch.testing.assert_close(found, image, rtol=0, atol=2 * float(np.spacing(np.float32(scale))))
