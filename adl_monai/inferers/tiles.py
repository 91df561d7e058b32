"""Overlapping tiles, for networks that cannot be swept along the image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from adl_monai.errors import is_out_of_memory
from adl_monai.inferers.sweep import mirror

logger = logging.getLogger(__name__)

_SMALLEST_TILE = 32  # below it a tile is mostly the border that its neighbours see better


def blend_tiles(
    denoise: Callable[[Tensor], Tensor],
    image: Tensor,
    tile: Sequence[int],
    overlap: float,
    batch_size: int,
    divisor: int,
    device: torch.device,
    progress: bool,
) -> Tensor:
    """Denoise tiles and blend them by `gaussian_weights`; where memory runs out, again in smaller ones.

    Args:
        denoise: Maps a batch of tiles, (B, C, h, w[, d]), to one of the same shape.
        image: (B, C, H, W[, D]).
        tile: Edges in voxels, multiples of ``divisor``; smaller where the image is.
        overlap: Share of the tile that neighbours have in common.
        batch_size: Tiles at a time.
        divisor: What the sizes of tiles need to be a multiple of; the image is mirrored at its ends to be one.
        device: Where tiles are denoised; the result is on the image's device.
        progress: Show a bar.
    """
    padded = pad_by_reflection(image, divisor)
    edges = tuple(min(edge, size) for edge, size in zip(tile, padded.shape[2:], strict=True))
    denoised = None
    while denoised is None:
        try:
            denoised = sliding_window_inference(
                padded,
                edges,
                batch_size,
                denoise,
                overlap,
                roi_weight_map=gaussian_weights(edges, device),
                sw_device=device,
                device=image.device,
                progress=progress,
            )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or edges == tuple(smaller_edge(edge, divisor) for edge in edges):
                raise
        if denoised is None:  # outside the handler, whose traceback holds the tensors of the failed try
            edges = tuple(smaller_edge(edge, divisor) for edge in edges)
            logger.warning("not enough memory: trying again with tiles of %s", "x".join(map(str, edges)))
    assert isinstance(denoised, Tensor)
    for axis, size in enumerate(image.shape[2:], start=2):
        denoised = denoised.narrow(axis, 0, size)
    return denoised


def smaller_edge(edge: int, divisor: int) -> int:
    """About half of a tile's edge, a multiple of ``divisor``, and not below the smallest useful tile."""
    smallest = -(-_SMALLEST_TILE // divisor) * divisor
    return min(edge, max(smallest, edge // 2 // divisor * divisor))


def gaussian_weights(edges: Sequence[int], device: torch.device) -> Tensor:
    """What a tile's voxels weigh: a separable Gaussian of standard deviation edge / 8.

    MONAI's own importance map is cut off at 1e-3, below which most of a 3D tile's border lies; there the outermost
    voxels, which miss their neighbours, would weigh as much as good ones. Here an edge voxel weighs e^-8 per axis.

    Args:
        edges: The tile's size.
        device: Where the weights are used.
    """
    weights = torch.ones((), device=device)
    for edge in edges:
        position = (torch.arange(edge, device=device) - (edge - 1) / 2) / (edge / 8)
        weights = weights[..., None] * torch.exp(-0.5 * position**2)
    return weights


def pad_by_reflection(image: Tensor, divisor: int) -> Tensor:
    """Extend each spatial axis at its end to a multiple of ``divisor``, mirrored at the last voxel.

    Unlike ``torch.nn.functional.pad`` it works for axes shorter than the padding: they are mirrored back and forth.

    Args:
        image: (B, C, H, W[, D]).
        divisor: Positive.
    """
    for axis in range(2, image.ndim):
        image = mirror(image, axis, -(-image.shape[axis] // divisor) * divisor)
    return image
