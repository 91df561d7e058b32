"""The denoisers that people use today, each as a function of the noisy image and the true noise level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Method = Callable[[np.ndarray, Any], np.ndarray]  # noisy image and noise level, or the noise's power spectrum


def gaussian_filter(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """A fixed blur of 0.8 voxels: the least a method has to beat."""
    from scipy.ndimage import gaussian_filter as run

    return run(noisy, 0.8)


def total_variation(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """Chambolle's total variation, its weight proportional to the noise."""
    from skimage.restoration import denoise_tv_chambolle

    return denoise_tv_chambolle(noisy, weight=1.2 * sigma)


def nlm_skimage(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """Non-local means of scikit-image, 2D."""
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(noisy, patch_size=3, patch_distance=4, h=0.8 * sigma, sigma=sigma, fast_mode=True)


def nlm_dipy(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """dipy's block-wise non-local means, 3D."""
    from dipy.denoise.nlmeans import nlmeans

    return nlmeans(noisy, sigma=sigma, patch_radius=1, rician=False)


def give_trapz() -> None:
    """BM3D's and BM4D's packages integrate spectra by what NumPy 2.4 removed."""
    if not hasattr(np, "trapz"):
        np.trapz = np.trapezoid  # type: ignore[attr-defined]


def bm4d(noisy: np.ndarray, sigma: float | np.ndarray) -> np.ndarray:
    """BM4D of its authors' package (Tampere; for non-commercial use)."""
    from bm4d import bm4d as run

    give_trapz()
    return run(noisy, sigma)


def bm3d(noisy: np.ndarray, sigma: float | np.ndarray) -> np.ndarray:
    """BM3D of its authors' package; volumes slice by slice."""
    from bm3d import bm3d as run

    give_trapz()
    if noisy.ndim == 2:
        return run(noisy, sigma)
    if isinstance(sigma, np.ndarray):
        sigma = sigma.mean(axis=-1) / noisy.shape[-1]  # what the slices have of the volume's spectrum
    return np.stack([run(noisy[..., k], sigma) for k in range(noisy.shape[-1])], axis=-1)


PEERS: dict[str, tuple[tuple[int, ...], Method]] = {
    "gaussian filter": ((2, 3), gaussian_filter),
    "TV": ((2, 3), total_variation),
    "NLM (scikit-image)": ((2,), nlm_skimage),
    "NLM (dipy)": ((3,), nlm_dipy),
    "BM3D": ((2, 3), bm3d),
    "BM4D": ((3,), bm4d),
}

TAKE_SPECTRUM = ("BM3D", "BM4D")


def without_rician_bias(denoised: np.ndarray, sigma: float) -> np.ndarray:
    """Map the mean of a Rician magnitude back to the clean value it belongs to."""
    from scipy.special import ive

    clean = np.linspace(0, 40, 4001)
    half = clean**2 / 4
    mean = np.sqrt(np.pi / 2) * ((1 + 2 * half) * ive(0, half) + 2 * half * ive(1, half))
    ratio = denoised / sigma
    return np.where(ratio < mean[-1], np.interp(ratio, mean, clean), ratio) * sigma
