"""The soft histogram counts every voxel, lets gradients pass and stays small."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from adl_monai.losses.histogram import HistogramLoss, logcosh, smooth_bins, soft_histogram


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sizes", [(17, 13), (9, 7, 5)])
@pytest.mark.parametrize("bins", [3, 64, 256])
def test_mass_is_kept(sizes: tuple[int, ...], bins: int) -> None:
    histogram = soft_histogram(3 * image(2, 3, *sizes) - 1, bins)
    assert histogram.shape == (2, 3, bins)
    torch.testing.assert_close(histogram.mean(2), torch.ones(2, 3))
    assert histogram.min() > -1e-4


def test_each_value_is_shared_by_its_two_neighbours() -> None:
    bins = 11
    values = torch.tensor([0.0, 0.33, 0.5, 1.0])
    expected = torch.zeros(bins)
    for value in values.tolist():  # bin centres at 0, 0.1, ..., 1
        expected += torch.clamp(1 - (torch.linspace(0, 1, bins) - value).abs() * 10, min=0)
    expected = smooth_bins(expected[None, None]) * bins / len(values)
    torch.testing.assert_close(soft_histogram(values.reshape(1, 1, 2, 2), bins), expected, atol=1e-5, rtol=1e-5)


def test_smoothing_keeps_mass_at_the_ends() -> None:
    for bins in (3, 10):
        torch.testing.assert_close(smooth_bins(torch.eye(bins)[:, None]).sum(2), torch.ones(bins, 1))
    torch.testing.assert_close(smooth_bins(torch.eye(9)[4:5, None])[0, 0, 2:7] * 16, torch.tensor([1.0, 4, 6, 4, 1]))


def test_it_follows_the_hard_histogram() -> None:
    values = image(1, 1, 64, 64) ** 2
    hard, _ = np.histogram(values.numpy(), bins=16, range=(0, 1))
    soft = soft_histogram(values, 256)[0, 0].reshape(16, 16).mean(1)
    np.testing.assert_allclose(soft.numpy(), hard * 16 / values.numel(), atol=0.1)


def test_values_outside_the_range_count_in_the_edge_bins() -> None:
    inside, outside = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([-7.0, 0.5, 1e30])
    torch.testing.assert_close(soft_histogram(outside.reshape(1, 1, 1, 3)), soft_histogram(inside.reshape(1, 1, 1, 3)))


def test_value_range_moves_the_bins() -> None:
    values = image(1, 1, 16, 16)
    shifted = soft_histogram(2000 * values - 1000, 64, (-1000.0, 1000.0))
    torch.testing.assert_close(shifted, soft_histogram(values, 64), atol=1e-3, rtol=1e-3)


def test_channels_and_cases_are_counted_apart() -> None:
    batch = image(2, 2, 8, 8)
    torch.testing.assert_close(soft_histogram(batch)[1, 0], soft_histogram(batch[1:, :1])[0, 0])


def test_nan_gives_nan_and_no_wild_index() -> None:
    values = image(1, 2, 8, 8)
    values[0, 1, 3, 3] = torch.nan
    histogram = soft_histogram(values)
    assert histogram[0, 0].isfinite().all()
    assert histogram[0, 1].isnan().any()
    assert HistogramLoss()(values, image(1, 2, 8, 8)).isnan()


@pytest.mark.parametrize("sizes", [(12, 10), (6, 5, 4)])
def test_gradient_equals_finite_differences(sizes: tuple[int, ...]) -> None:
    bins = 32
    # Well between the bin centres, so that a small step crosses none.
    centres = (torch.randint(0, bins - 1, (2, 1, *sizes), generator=torch.Generator().manual_seed(0)) + 0.5) / (
        bins - 1
    )
    denoised = centres.requires_grad_()
    clean = image(2, 1, *sizes, seed=1) ** 2
    loss = HistogramLoss(bins)
    loss(denoised, clean).backward()
    assert denoised.grad.count_nonzero() > 0.9 * denoised.numel()
    step = torch.randn(denoised.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        change = (loss(denoised + 1e-3 * step, clean) - loss(denoised - 1e-3 * step, clean)) / 2e-3
    torch.testing.assert_close((denoised.grad * step).sum(), change, rtol=1e-2, atol=1e-3)


def test_descending_the_gradient_restores_the_contrast() -> None:
    clean = image(1, 1, 32, 32)
    denoised = (0.3 + 0.5 * image(1, 1, 32, 32, seed=1)).requires_grad_()
    loss = HistogramLoss(64)
    optimizer = torch.optim.Adam([denoised], lr=5e-3)
    start = loss(denoised, clean).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss(denoised, clean).backward()
        optimizer.step()
    assert loss(denoised, clean) < 0.3 * start
    assert denoised.std() > 0.2  # of 0.29; it began at 0.14


def test_closer_contrast_costs_less_wherever_the_voxels_are() -> None:
    clean = image(1, 1, 32, 32)
    losses = [HistogramLoss()(0.5 + scale * (clean.flip(2) - 0.5), clean) for scale in (1.0, 0.9, 0.7, 0.4)]
    assert losses[0] < 1e-6
    assert losses == sorted(losses)


def test_clean_gets_no_gradient() -> None:
    clean = image(1, 1, 8, 8).requires_grad_()
    denoised = image(1, 1, 8, 8, seed=1).requires_grad_()
    HistogramLoss()(denoised, clean).backward()
    assert clean.grad is None


def test_logcosh_is_stable() -> None:
    values = torch.tensor([-1e4, -3.0, -1e-3, 0.0, 0.5, 20.0, 1e30])
    exact = torch.log(torch.cosh(values[1:6].double()))
    torch.testing.assert_close(logcosh(values[1:6]), exact.float(), atol=2e-7, rtol=1e-5)
    assert logcosh(values).isfinite().all()


def test_autocast_changes_nothing() -> None:
    denoised, clean = image(1, 1, 16, 16), image(1, 1, 16, 16, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = HistogramLoss()(denoised, clean)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, HistogramLoss()(denoised, clean))
    assert soft_histogram(denoised.bfloat16()).dtype == torch.float32


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_grows_with_the_voxels_alone() -> None:
    """Forward and backward of a (4, 1, 96, 96, 96) batch; voxels times bins would take 3.6 GB."""
    script = """
import re, torch
from pathlib import Path
from adl_monai.losses.histogram import HistogramLoss
# Not getrusage, whose peak a child inherits from the process that started it.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
loss = HistogramLoss(256)
loss(torch.rand(1, 1, 8, 8).requires_grad_(), torch.rand(1, 1, 8, 8)).backward()
clean, denoised = torch.rand(4, 1, 96, 96, 96), torch.rand(4, 1, 96, 96, 96).requires_grad_()
before = peak()
loss(denoised, clean).backward()
assert denoised.grad.count_nonzero() > 0
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 300  # MiB


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="bins is 2"):
        HistogramLoss(2)
    with pytest.raises(ValueError, match="low below high"):
        HistogramLoss(value_range=(1.0, 1.0))
