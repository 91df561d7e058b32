"""Denoising in memory, for those who call from Python."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np
import torch

from adl_monai.bundle import Denoiser, load_denoiser
from adl_monai.data.io import read_volume
from adl_monai.data.normalization import denormalize, normalize, robust_range
from adl_monai.data.volume import Volume
from adl_monai.errors import UsageError

logger = logging.getLogger(__name__)


@overload
def denoise(
    image: np.ndarray,
    model: str | Path | Denoiser | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    strength: float = 1.0,
    ensemble: int = 1,
) -> np.ndarray: ...


@overload
def denoise(
    image: Volume | str | Path,
    model: str | Path | Denoiser | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    strength: float = 1.0,
    ensemble: int = 1,
) -> Volume: ...


def denoise(
    image: np.ndarray | Volume | str | Path,
    model: str | Path | Denoiser | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    strength: float = 1.0,
    ensemble: int = 1,
) -> np.ndarray | Volume:
    """Denoise one image in memory.

    Args:
        image: A (H, W) or (H, W, D) array of any intensity scale, a ``Volume``, or the path of a scan.
        model: A ``Denoiser`` from ``adl_monai.bundle.load_denoiser`` (for many images), or what ``find_bundle`` takes.
        device: As in ``infer``; ignored when a ``Denoiser`` is given.
        precision: As in ``infer``; ignored when a ``Denoiser`` is given.
        strength: 0 returns the input, 1 the fully denoised image.
        ensemble: As in ``infer``; ignored when a ``Denoiser`` is given.

    Returns:
        A float32 array for an array; a ``Volume`` with a float32 array otherwise. Nothing is rounded or clipped.

    Raises:
        UsageError: If the array has the wrong number of axes, no voxels, or values that are not finite.
        ModelError: If there is no such model, or it is 3D and the image 2D.
    """
    if not isinstance(image, np.ndarray):
        volume = image if isinstance(image, Volume) else read_volume(Path(image))
        array = denoise(
            volume.without_padding(), model, device=device, precision=precision, strength=strength, ensemble=ensemble
        )
        return replace(volume, array=array).with_padding_of(volume)
    if not 0 <= strength <= 1:
        raise UsageError(f"strength {strength} is outside 0..1.")
    if image.ndim not in (2, 3) or image.size == 0 or image.dtype.kind not in "uif":
        raise UsageError(f"an array of shape {image.shape} and dtype {image.dtype} is not a 2D or 3D grey image.")
    if not np.isfinite(image).all():
        raise UsageError(f"the array holds {int((~np.isfinite(image)).sum())} NaN or infinite values; fill them first.")
    if not isinstance(model, Denoiser):
        model = load_denoiser(model, spatial_dims=image.ndim, device=device, precision=precision, ensemble=ensemble)
    noisy = torch.from_numpy(image.astype(np.float32))[None]
    lower, upper = model.percentiles
    offset, scale = robust_range(noisy, lower, upper)
    if scale == 0:
        logger.warning("the image is constant and is returned unchanged")
        return image.astype(np.float32)
    normalized = normalize(noisy, offset, scale)
    with torch.inference_mode():
        denoised = model.inferer(normalized[None], model.network)[0]
    if strength != 1:
        denoised = normalized + strength * (denoised - normalized)
    return np.asarray(denormalize(denoised, offset, scale)[0])
