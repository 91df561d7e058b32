"""Learning from trained models: labels that lean on what they make of the noisy image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adl_monai.compute import channels_last
from adl_monai.errors import ModelError, UsageError


class Teacher:
    r"""Trained denoisers whose results are learned, beside the clean image.

    What noise has destroyed, no network gives back, and a teacher's result has not got it either: that part of the
    loss, which only disturbs learning, shrinks with the teacher's share of the label. From the teacher alone a network
    would not learn to be better than it; what is left of the clean image is for that.

    .. math:: label = share \cdot teacher(noisy) + (1 - share) \cdot clean

    Of several teachers, the one whose result is nearest to the clean image teaches it, each image of a batch by itself:
    so one network learns what several knew, each of its own kind of noise. Each step shows the teachers another mirror
    image, in turn. Over the steps, that is to learn the mean over the mirror images, which is better than each.

    Args:
        models: Each a ``network``, which gives the full scale alone, and the path of its ``weights``, a state_dict.
        device: Where they run.
        spatial_dims: 2 or 3.
        share: See above, above 0 and at most 1.

    Raises:
        ModelError: If weights do not fit their network.
        UsageError: If ``share`` is not in its range.
        ValueError: If there is no teacher.

    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, arXiv 1503.02531.
    """

    def __init__(
        self,
        models: Sequence[Mapping[str, Any]],
        device: torch.device | str = "cpu",
        spatial_dims: int = 3,
        share: float = 0.7,
    ) -> None:
        if not models:
            raise ValueError("no model to learn from; give one at least.")
        if not 0 < share <= 1:
            raise UsageError(f"the teachers' share of a label is {share}; expected more than 0 and at most 1.")
        self.share = share
        self.layout = channels_last(spatial_dims)
        self.networks = [_load(model["network"], model["weights"]) for model in models]
        for network in self.networks:
            network.to(device=device, memory_format=self.layout)  # type: ignore[call-overload]

    @torch.no_grad()
    def labels(self, noisy: Tensor, clean: Tensor, turn: int) -> Tensor:
        """What to learn instead of the clean images, in float32.

        Args:
            noisy: (B, C, H, W[, D]), about [0, 1].
            clean: Of the same shape.
            turn: Number of the step: which mirror image the teachers see.
        """
        axes = [axis for axis in range(2, noisy.ndim) if turn >> (axis - 2) & 1]
        mirrored = noisy.flip(axes) if axes else noisy
        best, least = clean, torch.full((len(noisy),), torch.inf, device=noisy.device)
        for network in self.networks:
            result = network(mirrored).float()
            result = result.flip(axes) if axes else result
            error = (result - clean).square().flatten(1).mean(1)
            nearer = (error < least).view(-1, *[1] * (noisy.ndim - 1))
            best, least = torch.where(nearer, result, best), torch.minimum(error, least)
        return torch.lerp(clean.float(), best, self.share).contiguous(memory_format=self.layout)


def _load(network: torch.nn.Module, path: str | Path) -> torch.nn.Module:
    weights = torch.load(path, map_location="cpu", weights_only=True)
    try:
        network.load_state_dict(weights)  # half precision becomes the network's own
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"{path} does not fit the network to learn from: {error}") from error
    return network.eval().requires_grad_(False)
