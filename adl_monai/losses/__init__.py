"""The losses of adversarial distortion learning."""

from adl_monai.losses.adl import ADLLoss
from adl_monai.losses.adversarial import AdversarialLoss
from adl_monai.losses.histogram import HistogramLoss, soft_histogram
from adl_monai.losses.pyramid import PyramidalTexturalLoss, area_pyramid, detail_planes

__all__ = [
    "ADLLoss",
    "AdversarialLoss",
    "HistogramLoss",
    "PyramidalTexturalLoss",
    "area_pyramid",
    "detail_planes",
    "soft_histogram",
]
