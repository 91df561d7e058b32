"""Muon: orthogonal updates for kernels, Adam for the rest, state that survives a checkpoint."""

from __future__ import annotations

import io

import pytest
import torch

from adl_monai.engines import Muon
from adl_monai.engines.muon import QUINTIC, orthogonalised


@pytest.mark.parametrize("shape", [(16, 432), (64, 16), (8, 8)])
def test_singular_values_are_about_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    update = orthogonalised([matrix], [1.0])[0]
    values = torch.linalg.svdvals(update)
    assert values.max() < 1.35
    if shape != (8, 8):  # a square random matrix has singular values near 0, which five steps do not lift to 1
        assert values.min() > 0.5
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.T @ update @ vt.T
    assert (rotated - torch.diag(rotated.diagonal())).abs().max() < 1e-3


@pytest.mark.parametrize("shape", [(16, 432), (64, 16), (24, 24)])
@pytest.mark.parametrize("spread", [0, 7])
def test_it_is_the_quintic_of_the_singular_values(shape: tuple[int, int], spread: int) -> None:
    u, _, vt = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(1)), full_matrices=False)
    singular = torch.logspace(0, -spread, min(shape))
    values = (singular / singular.norm()).double()
    for _ in range(5):
        values = QUINTIC[0] * values + QUINTIC[1] * values**3 + QUINTIC[2] * values**5
    torch.testing.assert_close(
        orthogonalised([u * singular @ vt], [1.0])[0], u * values.float() @ vt, atol=1e-3, rtol=0
    )


def test_each_matrix_is_orthogonalised_by_itself() -> None:
    generator = torch.Generator().manual_seed(5)
    matrices = [
        10.0**power * torch.randn(shape, generator=generator)
        for power, shape in enumerate([(16, 32), (40, 16), (16, 16), (8, 72), (16, 432)], start=-2)
    ]
    sizes = [1.0, -2.0, 0.5, 3.0, -0.1]
    together = orthogonalised(matrices, sizes)
    for matrix, size, update in zip(matrices, sizes, together, strict=True):
        assert update.shape == matrix.shape
        torch.testing.assert_close(update, size * orthogonalised([matrix], [1.0])[0], atol=1e-5, rtol=1e-4)


def test_zero_gradients_move_nothing() -> None:
    kernel = torch.nn.Parameter(torch.ones(8, 8, 3, 3))
    kernel.grad = torch.zeros_like(kernel)
    Muon([kernel]).step()
    assert torch.equal(kernel, torch.ones_like(kernel))


def test_narrow_parameters_follow_adam() -> None:
    start = torch.randn(1, 16, 1, 1, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    muon = Muon([ours], narrow_lr=0.01, betas=(0.9, 0.99))
    adam = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.99))
    for step in range(5):
        for parameter, optimizer in ((ours, muon), (theirs, adam)):
            optimizer.zero_grad()
            ((parameter - step) ** 2).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_wide_kernels_move_by_the_learning_rate_whatever_the_gradient() -> None:
    for scale in (1e-6, 1e6):
        kernel = torch.nn.Parameter(torch.zeros(32, 16, 3, 3, 3))
        kernel.grad = scale * torch.randn(kernel.shape, generator=torch.Generator().manual_seed(2))
        Muon([kernel], lr=0.01).step()
        assert 0.7 * 0.002 < kernel.detach().square().mean().sqrt() < 1.3 * 0.002


def test_the_momentum_looks_ahead() -> None:
    kernel = torch.nn.Parameter(torch.zeros(16, 8, 3, 3))
    optimizer = Muon([kernel], lr=0.01, momentum=0.5)
    momentum, expected = torch.zeros_like(kernel), torch.zeros_like(kernel)
    for grad in torch.randn(3, *kernel.shape, generator=torch.Generator().manual_seed(3)):
        kernel.grad = grad.clone()
        optimizer.step()
        momentum = 0.5 * momentum + grad
        ahead = (grad + 0.5 * momentum).flatten(1)
        expected += orthogonalised([ahead], [-0.2 * 72**0.5 * 0.01])[0].view_as(expected)
    torch.testing.assert_close(kernel.detach(), expected)


def test_a_step_from_a_checkpoint_is_the_same_step() -> None:
    def network() -> torch.nn.Module:
        torch.manual_seed(3)
        return torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Conv2d(8, 16, 3))

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        optimizer.zero_grad()
        model(torch.randn(1, 1, 9, 9, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimizer.step()

    model = network()
    optimizer = Muon(model.parameters())
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    step(model, optimizer, 0)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    step(model, optimizer, 1)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    resumed = network()
    resumed.load_state_dict(kept["model"])
    again = Muon(resumed.parameters())
    again.load_state_dict(kept["optimizer"])
    step(resumed, again, 1)
    for a, b in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        Muon([torch.nn.Parameter(torch.ones(8, 8))], lr=0)
    with pytest.raises(ValueError, match="no parameter"):
        Muon([])


def test_weight_decay_holds_kernels_that_only_see_noise() -> None:
    sizes = {}
    for weight_decay in (0.0, 0.3):
        generator = torch.Generator().manual_seed(4)
        kernel = torch.nn.Parameter(0.04 * torch.randn(8, 72, generator=generator))
        optimizer = Muon([kernel], lr=0.05, momentum=0.9, weight_decay=weight_decay)
        for _ in range(1000):
            kernel.grad = 1e-6 * torch.randn(kernel.shape, generator=generator)
            optimizer.step()
        sizes[weight_decay] = float(kernel.detach().square().mean().sqrt())
    assert sizes[0.3] < 0.5 * sizes[0.0]
