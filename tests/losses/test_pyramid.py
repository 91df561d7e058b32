"""Scales and detail planes: right filter, right borders, every plane counts."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from adl_monai.losses.pyramid import PyramidalTexturalLoss, area_pyramid, detail_planes


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def dense_smoothing(array: np.ndarray, hole: int) -> np.ndarray:
    """The same smoothing by one dense kernel over all axes; SciPy's "mirror" does not repeat the border voxel."""
    line = np.zeros(4 * hole + 1)
    line[::hole] = np.array([1, 4, 6, 4, 1]) / 16
    kernel = np.ones(())
    for _ in range(array.ndim):
        kernel = np.multiply.outer(kernel, line)
    return ndimage.convolve(array, kernel, mode="mirror")


@pytest.mark.parametrize("sizes", [(40, 37), (20, 19, 23), (5, 3), (9, 2, 1)])
def test_planes_equal_a_dense_convolution(sizes: tuple[int, ...]) -> None:
    noisy = image(2, 3, *sizes)
    smooth = noisy[1, 2].double().numpy()
    for level, plane in enumerate(detail_planes(noisy, 3)):
        smoother = dense_smoothing(smooth, 2**level)
        np.testing.assert_allclose(plane[1, 2].numpy(), smooth - smoother, atol=2e-6)
        smooth = smoother


@pytest.mark.parametrize("sizes", [(16, 12), (9, 10, 4)])
def test_a_flat_image_has_no_detail(sizes: tuple[int, ...]) -> None:
    assert all(plane.abs().max() < 1e-5 for plane in detail_planes(torch.full((1, 1, *sizes), 7.0)))


def test_planes_are_finest_first_however_many() -> None:
    noisy = image(1, 1, 16, 12)
    assert len(detail_planes(noisy, 4)) == 4
    torch.testing.assert_close(detail_planes(noisy, 4)[:2], detail_planes(noisy, 2))


@pytest.mark.parametrize(("period", "plane"), [(2, 0), (7, 1), (14, 2)])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_frequency_band_lands_in_its_plane(period: int, plane: int, spatial_dims: int) -> None:
    shape = (1, 1, 84, *(6,) * (spatial_dims - 1))
    wave = torch.cos(2 * torch.pi * torch.arange(84) / period).reshape(1, 1, 84, *(1,) * (spatial_dims - 1))
    energies = [detail.square().mean().item() for detail in detail_planes(wave.expand(shape))]
    assert energies[plane] == max(energies)
    assert energies[plane] > 2 * sorted(energies)[1]


@pytest.mark.parametrize("sizes", [(32, 32), (16, 12, 20)])
def test_loss_is_the_sum_over_all_planes(sizes: tuple[int, ...]) -> None:
    denoised, clean = image(2, 1, *sizes), image(2, 1, *sizes, seed=1)
    each = [
        (mine - other).abs().mean() for mine, other in zip(detail_planes(denoised), detail_planes(clean), strict=True)
    ]
    loss = PyramidalTexturalLoss()(denoised, clean)
    torch.testing.assert_close(loss, sum(each))
    for kept in range(3):
        others = sum(value for plane, value in enumerate(each) if plane != kept)
        assert loss - others > 0.01 * loss  # leaving any plane out changes the loss


def test_each_plane_sends_a_gradient() -> None:
    clean = image(1, 1, 24, 24)
    gradients = []
    for planes in (1, 2, 3):
        denoised = image(1, 1, 24, 24, seed=1).requires_grad_()
        PyramidalTexturalLoss(planes)(denoised, clean).backward()
        gradients.append(denoised.grad)
    assert (gradients[1] - gradients[0]).abs().max() > 1e-5
    assert (gradients[2] - gradients[1]).abs().max() > 1e-5


@pytest.mark.parametrize("sizes", [(6, 7), (4, 3, 5)])
def test_gradient_equals_finite_differences(sizes: tuple[int, ...]) -> None:
    denoised = image(1, 1, *sizes).requires_grad_()
    clean = image(1, 1, *sizes, seed=1)
    loss = PyramidalTexturalLoss()
    loss(denoised, clean).backward()
    step = torch.randn(denoised.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        change = (loss(denoised + 1e-3 * step, clean) - loss(denoised - 1e-3 * step, clean)) / 2e-3
    torch.testing.assert_close((denoised.grad * step).sum(), change, rtol=2e-2, atol=1e-3)


def test_closer_images_cost_less() -> None:
    clean = image(1, 1, 32, 32)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    losses = [PyramidalTexturalLoss()(clean + sigma * noise, clean) for sigma in (0.0, 0.05, 0.1, 0.3)]
    assert losses[0] == 0
    assert losses == sorted(losses)


def test_autocast_changes_nothing() -> None:
    denoised, clean = image(1, 1, 16, 16, 16), image(1, 1, 16, 16, 16, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = PyramidalTexturalLoss()(denoised, clean)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, PyramidalTexturalLoss()(denoised, clean))
    coarse = [one.bfloat16() for one in (denoised, clean)]
    rounded = PyramidalTexturalLoss()(*coarse)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, PyramidalTexturalLoss()(*(one.float() for one in coarse)))


def test_what_is_kept_between_calls_can_be_trained_with() -> None:
    clean = image(1, 1, 22, 26)
    with torch.inference_mode():
        PyramidalTexturalLoss()(image(1, 1, 22, 26, seed=1), clean)
    denoised = image(1, 1, 22, 26, seed=1).requires_grad_()
    PyramidalTexturalLoss()(denoised, clean).backward()
    assert denoised.grad is not None
    assert denoised.grad.abs().max() > 0


def test_area_pyramid_averages_areas() -> None:
    full = torch.arange(32.0).reshape(1, 1, 4, 8)
    scales = area_pyramid(full.half())
    assert [tuple(scale.shape) for scale in scales] == [(1, 1, 4, 8), (1, 1, 2, 4), (1, 1, 1, 2)]
    assert all(scale.dtype == torch.float32 for scale in scales)
    assert scales[1][0, 0, 1, 2] == full[0, 0, 2:4, 4:6].mean()
    assert scales[2][0, 0, 0, 1] == full[0, 0, :, 4:].mean()
    volume = image(1, 2, 8, 4, 4)
    torch.testing.assert_close(area_pyramid(volume, 2)[1][0, 1, 3, 0, 1], volume[0, 1, 6:8, 0:2, 2:4].mean())


def test_no_planes_are_refused() -> None:
    with pytest.raises(ValueError, match="planes is 0"):
        PyramidalTexturalLoss(0)
