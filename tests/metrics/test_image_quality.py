"""PSNR and SSIM: equal to scikit-image's, right at the edges of their domain, usable as MONAI metrics."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import SSIMMetric
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from adl_monai.metrics import SSIM, image_quality, psnr, ssim
from adl_monai.metrics.image_quality import window_for

SHAPES = [(2, 1, 33, 24), (1, 3, 17, 40), (2, 1, 15, 22, 13), (1, 2, 12, 19, 11)]


def noisy_pair(shape: tuple[int, ...], scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    clean = torch.rand(shape, generator=generator) * scale
    return clean + 0.1 * scale * torch.randn(shape, generator=generator), clean


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 4095.0])
def test_psnr_is_scikit_images(shape: tuple[int, ...], scale: float) -> None:
    denoised, clean = noisy_pair(shape, scale)
    expected = [
        peak_signal_noise_ratio(reference.numpy(), image.numpy(), data_range=scale)
        for reference, image in zip(clean, denoised, strict=True)
    ]
    np.testing.assert_allclose(psnr(denoised, clean, scale), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 4095.0])
def test_ssim_is_scikit_images(shape: tuple[int, ...], scale: float) -> None:
    denoised, clean = noisy_pair(shape, scale)
    expected = [
        structural_similarity(
            reference.numpy().astype(np.float64),
            image.numpy().astype(np.float64),
            data_range=scale,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=0,
        )
        for reference, image in zip(clean, denoised, strict=True)
    ]
    np.testing.assert_allclose(ssim(denoised, clean, scale), expected, atol=1e-5)


def test_ssim_far_from_zero() -> None:
    """Of 16-bit images whose contrast is small beside their offset; float32's squares would hide it."""
    denoised, clean = (image + 1000 for image in noisy_pair((1, 1, 40, 61, 33)))
    expected = structural_similarity(
        clean[0, 0].double().numpy(),
        denoised[0, 0].double().numpy(),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    np.testing.assert_allclose(ssim(denoised, clean, 1.0), [expected], atol=1e-4)
    # Beside an image that lies elsewhere, too.
    batch = [torch.cat([image, image - 3000]) for image in (denoised, clean)]
    np.testing.assert_allclose(ssim(*batch, 1.0)[0], expected, atol=1e-4)


def test_ssim_is_monais() -> None:
    denoised, clean = noisy_pair((2, 1, 25, 22, 19))
    expected = SSIMMetric(3, data_range=1.0, reduction="none")(denoised, clean)
    torch.testing.assert_close(ssim(denoised, clean, 1.0), torch.as_tensor(expected).flatten(), rtol=0, atol=1e-5)


def test_ssim_keeps_its_precision_under_autocast() -> None:
    denoised, clean = noisy_pair((1, 1, 25, 22, 19))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ssim(denoised, clean, 1.0)
    assert torch.equal(inside, ssim(denoised, clean, 1.0))


def test_each_image_of_a_batch_is_measured_on_its_own() -> None:
    clean = torch.rand(3, 1, 16, 16, 16)
    denoised = clean + torch.tensor([0.0, 0.01, 0.1]).view(3, 1, 1, 1, 1) * torch.randn(clean.shape)
    for metric in (psnr, ssim):
        values = metric(denoised, clean, 1.0)
        assert values.shape == (3,)
        assert values[0] > values[1] > values[2]
        torch.testing.assert_close(values[1:2], metric(denoised[1:2], clean[1:2], 1.0))


def test_identical_images() -> None:
    clean = torch.rand(2, 1, 12, 12)
    assert psnr(clean, clean, 1.0).tolist() == [math.inf, math.inf]
    torch.testing.assert_close(ssim(clean, clean, 1.0), torch.ones(2))


@pytest.mark.parametrize("thickness", range(1, 13))
def test_a_volume_of_equal_slices_has_the_value_of_one_slice(thickness: int) -> None:
    denoised, clean = noisy_pair((2, 1, 21, 18))
    expected = ssim(denoised, clean, 1.0)
    for axis in (2, 3, 4):
        stacked = [
            image.unsqueeze(axis).expand(*(-1,) * axis, thickness, *(-1,) * (4 - axis)) for image in (denoised, clean)
        ]
        torch.testing.assert_close(ssim(*stacked, 1.0), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("thickness", [2, 5, 10])
def test_thin_volumes_tell_noise_from_none(thickness: int) -> None:
    denoised, clean = noisy_pair((1, 1, 24, 24, thickness))
    assert ssim(denoised, clean, 1.0) < ssim(0.5 * (denoised + clean), clean, 1.0) < 1


def test_windows_are_odd_and_fit() -> None:
    assert window_for((64, 11, 10, 4)) == (11, 11, 9, 3)
    assert window_for((3, 2, 1)) == (3, 1, 1)


def test_data_range_scales_with_the_image() -> None:
    denoised, clean = noisy_pair((1, 1, 20, 20))
    for metric in (psnr, ssim):
        torch.testing.assert_close(
            metric(100 * denoised, 100 * clean, 100.0), metric(denoised, clean, 1.0), rtol=1e-4, atol=1e-5
        )


def test_integers_and_half_precision_do_not_wrap() -> None:
    clean = torch.zeros(1, 1, 12, 12, dtype=torch.int16)
    expected = psnr(torch.full(clean.shape, 1000.0), clean.float(), 4095.0)
    assert torch.isfinite(expected).all()
    for dtype in (torch.int16, torch.float16):
        torch.testing.assert_close(psnr(torch.full(clean.shape, 1000, dtype=dtype), clean.to(dtype), 4095.0), expected)


def test_metadata_is_left_behind() -> None:
    clean = MetaTensor(torch.rand(1, 1, 12, 12))
    for metric in (psnr, ssim):
        assert type(metric(clean + 0.1, clean, 1.0)) is torch.Tensor


def test_nan_voxels_are_not_hidden() -> None:
    denoised, clean = noisy_pair((2, 1, 12, 12))
    denoised[0, 0, 6, 6] = math.nan
    for metric in (psnr, ssim):
        assert metric(denoised, clean, 1.0).isnan().tolist() == [True, False]


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_wrong_arguments_are_named(metric: object) -> None:
    assert callable(metric)
    clean = torch.rand(1, 1, 12, 12)
    with pytest.raises(ValueError, match=r"\(1, 1, 12, 12\).*\(1, 1, 12, 13\)"):
        metric(clean, torch.rand(1, 1, 12, 13), 1.0)
    with pytest.raises(ValueError, match=r"\(12, 12\)"):
        metric(clean[0, 0], clean[0, 0], 1.0)
    for data_range in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="data_range"):
            metric(clean, clean, data_range)


def test_ssim_accumulates_as_a_monai_metric() -> None:
    metric = SSIM(spatial_dims=3, data_range=1.0)
    pairs = [noisy_pair((1, 1, 16, 14, thickness)) for thickness in (4, 12)]
    for denoised, clean in pairs:
        metric(y_pred=denoised, y=clean)
    expected = torch.cat([ssim(denoised, clean, 1.0) for denoised, clean in pairs]).mean()
    torch.testing.assert_close(metric.aggregate().squeeze(), expected)
    metric.reset()
    metric(y_pred=pairs[0][1], y=pairs[0][1])
    assert metric.aggregate().item() == pytest.approx(1.0)


def test_ssim_metric_refuses_the_wrong_number_of_dimensions() -> None:
    with pytest.raises(ValueError, match="spatial_dims=3"):
        SSIM(3, 1.0)(torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16))


def test_the_docstrings_examples_hold() -> None:
    results = doctest.testmod(image_quality, extraglobs={"torch": torch})
    assert results.attempted > 0
    assert results.failed == 0
