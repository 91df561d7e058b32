"""Blind 2D and 3D medical image denoising by adversarial distortion learning, on MONAI.

Example::

    import adl_monai

    denoised = adl_monai.denoise("scan.nii.gz", model="run")  # a Volume: array, affine, ...
    denoised.save("denoised.nii.gz")  # with the source's header
    denoised = adl_monai.denoise(array, model="run")  # an array in, an array out
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adl_monai.errors import AdlError
from adl_monai.nameless import lend_monai_a_user
from adl_monai.version import __version__

__all__ = ["AdlError", "Volume", "__version__", "denoise", "load_denoiser", "read_volume"]

lend_monai_a_user()

if TYPE_CHECKING:
    from adl_monai.bundle import load_denoiser
    from adl_monai.data.io import read_volume
    from adl_monai.data.volume import Volume
    from adl_monai.stages.arrays import denoise
else:  # hidden from type checkers, which would take every name for one of ours
    _PLACES = {
        "Volume": "adl_monai.data.volume",
        "denoise": "adl_monai.stages.arrays",
        "load_denoiser": "adl_monai.bundle",
        "read_volume": "adl_monai.data.io",
    }

    def __getattr__(name: str) -> Any:
        # torch and monai take seconds to import: only who denoises pays for them.
        if name in _PLACES:
            return getattr(import_module(_PLACES[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return __all__
