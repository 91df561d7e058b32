"""Denoising in memory, for those who call from Python."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from adl_monai.bundle import Denoiser, load_denoiser
from adl_monai.compute import pick_device
from adl_monai.data.io import read_volume
from adl_monai.data.missing_voxels import filled_from_beside, keeps_missing
from adl_monai.data.noise_floor import keep_means, keeps_means, warn_of_fall
from adl_monai.data.normalization import denormalize, in_fixed_range, normalize, robust_range
from adl_monai.data.volume import Volume
from adl_monai.data.voxels import FEWEST_STEPS, float32_step
from adl_monai.errors import ModelError, UsageError
from adl_monai.stages.slices import fitting_axes

logger = logging.getLogger(__name__)


@overload
def denoise(
    image: np.ndarray,
    model: str | Path | Denoiser | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    strength: float = 1.0,
    ensemble: int = 2,
    noise_floor: str = "auto",
    nan_policy: str = "refuse",
) -> np.ndarray: ...


@overload
def denoise(
    image: Volume | str | Path,
    model: str | Path | Denoiser | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    strength: float = 1.0,
    ensemble: int = 2,
    noise_floor: str = "auto",
    nan_policy: str = "refuse",
) -> Volume: ...


def denoise(
    image: np.ndarray | Volume | str | Path,
    model: str | Path | Denoiser | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    strength: float = 1.0,
    ensemble: int = 2,
    noise_floor: str = "auto",
    nan_policy: str = "refuse",
) -> np.ndarray | Volume:
    """Denoise one image in memory.

    Args:
        image: A (H, W) or (H, W, D) array of any intensity scale, a ``Volume``, or the path of a scan. Tensors are
            refused, as MONAI's have a channel axis: pass ``tensor[0].numpy()``. So are arrays with masked elements.
        model: A ``Denoiser`` from ``adl_monai.bundle.load_denoiser`` (for many images), or what ``find_bundle`` takes.
            None takes the shipped one that ``fitting_axes`` says; voxels of an array count as cubes.
        device: As in ``infer``; ignored when a ``Denoiser`` is given.
        precision: As in ``infer``; ignored when a ``Denoiser`` is given.
        strength: 0 returns the input, 1 the fully denoised image.
        ensemble: As in ``infer``; ignored when a ``Denoiser`` is given.
        noise_floor: As in ``infer``; of an array nobody knows the modality.
        nan_policy: As in ``infer``, for arrays and paths.

    Returns:
        A float32 array for an array; a ``Volume`` with a float32 array otherwise. Nothing is clipped, or rounded but to
        float32.

    Raises:
        UsageError: If the image is none of these; if the array has the wrong number of axes, no voxels, values that are
            not finite, or values that float32 cannot tell apart (small contrasts on a large offset); or if an option
            has no such value.
        ModelError: If there is no such model, or it is 3D and the image 2D.
    """
    _check_options(model, device, strength)
    keep_missing = keeps_missing(nan_policy)
    options: dict[str, Any] = {"device": device, "precision": precision, "strength": strength, "ensemble": ensemble}
    if not isinstance(image, np.ndarray):
        if not isinstance(image, Volume | str | os.PathLike):
            raise UsageError(_not_an_image(image))
        volume = image if isinstance(image, Volume) else read_volume(Path(image), nan_policy=nan_policy)
        if model is None:
            axes = fitting_axes(volume.array.shape, volume.spacing)
            model = load_denoiser(None, spatial_dims=axes, device=device, precision=precision, ensemble=ensemble)
        if noise_floor == "auto" and volume.modality:
            noise_floor = "keep" if keeps_means(noise_floor, volume.modality) else "remove"
        array = denoise(volume.without_padding(), model, noise_floor=noise_floor, **options)
        return replace(volume, array=array).with_padding_of(volume)
    keep = keeps_means(noise_floor)
    if np.ma.is_masked(image):
        raise UsageError(
            f"{np.ma.count_masked(image)} of the array's {image.size} elements are masked, which a model cannot see; "
            "pass array.filled(value), with a value such as array.min(), and mask what comes back."
        )
    image = np.asarray(image)  # of a subclass
    if image.ndim not in (2, 3) or image.size == 0 or image.dtype.kind not in "uif":
        raise UsageError(f"an array of shape {image.shape} and dtype {image.dtype} is not a 2D or 3D grey image.")
    missing = ~np.isfinite(image)
    if missing.any():
        if not keep_missing or missing.all():
            raise UsageError(
                f"{int(missing.sum())} of the array's {image.size} values are NaN or infinite; fill them first, or "
                "pass nan_policy='keep' to have them back as they are."
            )
        around = denoise(filled_from_beside(image, missing), model, noise_floor=noise_floor, **options)
        return np.where(missing, image, around).astype(np.float32)
    if not isinstance(model, Denoiser):
        axes = fitting_axes(image.shape)
        model = load_denoiser(model, spatial_dims=axes, device=device, precision=precision, ensemble=ensemble)
    if model.spatial_dims > image.ndim:
        raise ModelError(
            f"the array is 2D (shape {image.shape}), but the model {model.name} is 3D; pass a 2D one (model='adl2d')."
        )
    noisy = torch.from_numpy(_in_single(image, model.percentiles))[None]
    offset, scale = in_fixed_range(robust_range(noisy, *model.percentiles), model.fixed_range)
    if scale == 0:
        logger.warning("the image is constant and is returned unchanged")
        return image.astype(np.float32)
    normalized = normalize(noisy, offset, scale)
    with torch.inference_mode():
        denoised = model.inferer(normalized[None], model.network)[0]
    if keep:  # before the blend: what still holds noise is no guide to levels
        denoised = keep_means(normalized, denoised.float().cpu(), model.spatial_dims)
    if strength != 1:
        denoised = normalized + strength * (denoised - normalized)
    result = np.asarray(denormalize(denoised, offset, scale)[0])
    if noise_floor == "auto":
        warn_of_fall("the image", noisy.mean(dtype=torch.float64).item(), result.mean(dtype=np.float64).item(), offset)
    return result


def _in_single(image: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """An array in float32; ``FEWEST_STEPS`` holds where float32 is coarser than the array's own numbers.

    Raises:
        UsageError: If it does not hold, or values are beyond float32.
    """
    with np.errstate(over="ignore"):  # refused below
        single = image.astype(np.float32)
    if np.can_cast(image.dtype, np.float32):
        return single
    largest = float(np.finfo(np.float32).max)
    if not np.isfinite(single).all():
        raise UsageError(f"the array holds values beyond {largest:.1e}, the largest of float32; divide it first.")
    offset, scale = robust_range(image, *percentiles)
    step = float32_step(offset, offset + scale)
    exact = step <= 1 if image.dtype.kind in "ui" else np.array_equal(single, image)
    if exact or scale >= FEWEST_STEPS * step or (scale == 0 and image.min() == image.max()):
        return single
    raise UsageError(
        f"between {offset:.10g} and {offset + scale:.10g}, where most of the array's values lie, float32 has only "
        f"{int(scale / step)} numbers, and images are denoised and returned in float32. Subtract the offset first, and "
        "add it afterwards: denoise(array - array.min()) + array.min(); multiply numbers that are tiny."
    )


def _check_options(model: object, device: str, strength: object) -> None:
    """Refuse what callers from Python may pass and the command line cannot."""
    if not isinstance(model, Denoiser | str | os.PathLike | None):
        raise UsageError(
            f"model is a {type(model).__name__}; expected a name (adl3d, adl2d), a folder, or load_denoiser's result."
        )
    if not isinstance(strength, int | float | np.floating) or not 0 <= strength <= 1:
        raise UsageError(f"strength is {strength!r}; expected a number from 0 to 1.")
    if not isinstance(model, Denoiser):
        pick_device(device)


def _not_an_image(image: object) -> str:
    """What to do with what is neither an array, a volume nor a path."""
    if isinstance(image, torch.Tensor):
        advice = "pass its numpy array without the channel axis, such as tensor[0].numpy()"
    else:
        advice = "pass numpy.asarray of it if it is a 2D or 3D grey image"
    return f"the image is a {type(image).__name__}; expected a numpy array, a Volume or the path of a scan: {advice}."
