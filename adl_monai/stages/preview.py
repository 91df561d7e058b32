"""The picture beside a result: noisy, denoised and what was removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from adl_monai.files import replacing

SMALLEST_PICTURE = 256  # pixels high, or little less


def draw_preview(noisy: Tensor, denoised: Tensor, affine: np.ndarray) -> np.ndarray:
    """Noisy, denoised and the amplified residual side by side as 8-bit greys; small slices are enlarged.

    Args:
        noisy: (1, H, W[, D]), about [0, 1].
        denoised: Same shape.
        affine: (4, 4) voxel to RAS+ mm, which tells what is up.
    """
    from adl_monai.engines.preview import preview_row

    row = preview_row(noisy, denoised, affine=affine)[0]
    enlarge = max(1, SMALLEST_PICTURE // row.shape[0])
    row = row.repeat_interleave(enlarge, 0).repeat_interleave(enlarge, 1)
    return np.asarray((row * 255).round().byte())


def write_preview(path: Path, picture: np.ndarray) -> None:
    """Write what ``draw_preview`` gave as a PNG."""
    from PIL import Image

    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
