"""The exponential moving average of the denoiser's weights: what is validated and shipped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from adl_monai.compute import unwrap


class EMA(AveragedModel):
    """A slowly following copy of a denoiser, in inference form (one full-scale output).

    The decay rises with the number of updates, ``min(decay, (1 + n) / (10 + n))``, so that short runs are not held
    back by their random start. Buffers (batch-norm statistics) are copied, being averages already.

    Args:
        network: The denoiser being trained; a ``DistributedDataParallel`` is unwrapped.
        decay: Upper bound of the share that the old average keeps at an update, in [0, 1).
    """

    def __init__(self, network: torch.nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay {decay} is outside [0, 1).")

        def follow(averages: Sequence[Tensor], currents: Sequence[Tensor], updates: Tensor | int) -> None:
            count = int(updates)
            keep = min(decay, (1 + count) / (10 + count))
            torch._foreach_lerp_(list(averages), list(currents), 1 - keep)

        super().__init__(unwrap(network), multi_avg_fn=follow, use_buffers=False)
        self.module.requires_grad_(False)
        self.module.eval()
        if hasattr(self.module, "multi_scale"):
            setattr(self.module, "multi_scale", False)  # noqa: B010 (nn.Module attributes are typed as tensors)

    def update_parameters(self, model: torch.nn.Module) -> None:
        """Move the average one step towards ``model``."""
        super().update_parameters(unwrap(model))
