"""How good a denoised image is."""

from adl_monai.metrics.image_quality import SSIM, psnr, ssim

__all__ = ["SSIM", "psnr", "ssim"]
