"""Gradient checkpointing: memory for time. A unit keeps its inputs alone and is computed again in the backward pass.

After Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016, arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputable(nn.Module):
    """A unit that can be checkpointed, by setting ``recomputed``; its outputs, gradients and statistics stay the same.

    Only calls that will be differentiated in training mode are affected. TorchScript compiles ``forward`` and knows
    nothing of this, and parameters keep their names, so weights pass between networks with and without it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recomputed = False

    def __call__(self, *inputs: Any) -> Any:
        """``forward``, with or without keeping what its backward needs."""
        if not (self.recomputed and self.training and torch.is_grad_enabled()):
            return super().__call__(*inputs)
        # No unit draws random numbers, hence no generator's state to keep.
        return checkpoint(
            super().__call__, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=self._contexts
        )

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), counted_once(self)


@contextmanager
def counted_once(unit: nn.Module) -> Iterator[None]:
    """Within the block, the running statistics of normalisation layers stay as they are, and all else is as before.

    Not by ``track_running_stats``: a layer without it keeps other tensors, and the two passes must keep the same.
    """
    tracking: list[Any] = [layer for layer in unit.modules() if getattr(layer, "track_running_stats", False)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in tracking]
    for norm in tracking:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(tracking, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
