"""Blind 2D and 3D medical image denoising by adversarial distortion learning, on MONAI.

Example::

    import adl_monai

    denoised = adl_monai.denoise("scan.nii.gz", model="run")  # a Volume: array, affine, ...
    denoised = adl_monai.denoise(array, model="run")  # an array in, an array out
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adl_monai.version import __version__

if TYPE_CHECKING:
    from adl_monai.stages.arrays import denoise

__all__ = ["__version__", "denoise"]


def __getattr__(name: str) -> Any:
    # torch and monai take seconds to import: only who denoises pays for them.
    if name == "denoise":
        from adl_monai.stages.arrays import denoise

        return denoise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
