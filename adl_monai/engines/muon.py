"""Muon: momentum whose singular values are all set to about one, for convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

# Of the quintic that drives singular values in (0, 1] into about [0.7, 1.2] within five steps (Jordan et al.).
QUINTIC = (3.4445, -4.7750, 2.0315)
NARROWEST = 8


class Muon(torch.optim.Optimizer):
    """Muon for kernels, Adam for what is too narrow to have a spectrum; one optimizer, two parameter groups.

    A kernel (out, in, k, ...) is taken as the matrix (out, in · k · ...). The update is the orthogonalised momentum
    times ``0.2 sqrt(max(rows, columns))``, so that its root mean square is about 0.2 whatever the shape (Liu et al.,
    "Muon is scalable for LLM training", arXiv 2502.16982). ``torch.optim.Muon`` takes two-dimensional parameters
    only.

    Args:
        params: Parameters of the network.
        lr: Step of the wide kernels.
        narrow_lr: Step of Adam, for parameters with fewer than 8 rows or columns.
        momentum: Of the wide kernels, with Nesterov's look ahead.
        weight_decay: Share of a wide kernel, times ``lr``, that a step takes away. Every step is of full size however
            weak the gradient, so that kernels which matter little would grow without end.
        betas: Of Adam.
        eps: Of Adam.

    Raises:
        ValueError: If a step is not positive, a share is outside [0, 1), or there is nothing to train.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.003,
        narrow_lr: float = 0.001,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        if lr <= 0 or narrow_lr <= 0:
            raise ValueError(f"learning rates {lr} and {narrow_lr} given; expected positive numbers.")
        if not all(0 <= share < 1 for share in (momentum, *betas)):
            raise ValueError(f"momentum {momentum} and betas {tuple(betas)} given; expected 0 <= each < 1.")
        given = [parameter for parameter in params if parameter.requires_grad]
        wide = [p for p in given if p.ndim > 1 and min(p.shape[0], p[0].numel()) >= NARROWEST]
        narrow = [p for p in given if not any(p is one for one in wide)]
        groups: list[dict[str, Any]] = [
            {"params": wide, "lr": lr, "orthogonal": True},
            {"params": narrow, "lr": narrow_lr, "orthogonal": False},
        ]
        groups = [group for group in groups if group["params"]]
        if not groups:
            raise ValueError("there is no parameter to train; pass network.parameters().")
        super().__init__(
            groups, {"momentum": momentum, "weight_decay": weight_decay, "betas": tuple(betas), "eps": eps}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            learning = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["orthogonal"]:
                self._move_orthogonally(learning, group)
            else:
                for parameter in learning:
                    self._move_by_adam(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def _move_orthogonally(self, kernels: list[Tensor], group: dict[str, Any]) -> None:
        if not kernels:
            return
        grads: list[Tensor] = [kernel.grad for kernel in kernels if kernel.grad is not None]
        for kernel in kernels:
            if not self.state[kernel]:
                self.state[kernel]["momentum"] = torch.zeros_like(kernel)
        momenta = [self.state[kernel]["momentum"] for kernel in kernels]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, grads)
        ahead = torch._foreach_add(grads, momenta, alpha=group["momentum"])
        matrices = [look.flatten(1) for look in ahead]
        sizes = [-0.2 * max(matrix.shape) ** 0.5 * group["lr"] for matrix in matrices]
        updates = orthogonalised(matrices, sizes)
        torch._foreach_mul_(kernels, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(kernels, [update.reshape(k.shape) for update, k in zip(updates, kernels, strict=True)])

    def _move_by_adam(self, parameter: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        adam(
            *([parameter], [grad], [state["mean"]], [state["square"]], [], [state["step"]]),
            foreach=False,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )


def orthogonalised(matrices: Sequence[Tensor], sizes: Sequence[float], steps: int = 5) -> list[Tensor]:
    """Matrices of the same singular vectors, whose singular values are about 1 (between 0.5 and 1.3), times a size.

    The iterations are on the Gram matrices, which are small, and what they multiply up to is applied once: two products
    with the kernel itself instead of two in every iteration. Gram matrices of one size iterate together: on a GPU, it
    is the number of operations that takes the time.

    Args:
        matrices: Each (rows, columns), float32. Zero stays zero.
        sizes: What each is multiplied by.
        steps: Newton-Schulz iterations.
    """
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
    alike: dict[int, list[int]] = {}
    for index, matrix in enumerate(wide):
        alike.setdefault(len(matrix), []).append(index)
    results = list(wide)
    for indices in alike.values():
        gram = torch.stack([wide[index] @ wide[index].T for index in indices])
        scale = gram.diagonal(dim1=1, dim2=2).sum(1).sqrt().clamp(min=1e-20)[:, None, None]  # Frobenius norms
        factor = newton_schulz(gram / scale / scale, steps) / scale
        for index, product in zip(indices, factor, strict=True):
            results[index] = torch.addmm(wide[index], product, wide[index], beta=0, alpha=sizes[index])
    return [
        result if matrix.shape[0] <= matrix.shape[1] else result.T
        for result, matrix in zip(results, matrices, strict=True)
    ]


def newton_schulz(gram: Tensor, steps: int) -> Tensor:
    """What orthogonalises matrices, given their Gram matrices (B, n, n) with a trace of 1: multiply from the left."""
    first, third, fifth = QUINTIC
    product = None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth)
        factor.diagonal(dim1=1, dim2=2).add_(first)
        product = factor if product is None else factor @ product
        if step < steps - 1:
            gram = factor @ gram @ factor
    assert product is not None
    return product
