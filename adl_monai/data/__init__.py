"""Scans in and out, their geometry and intensities; noise; patches."""

from adl_monai.data.cases import list_cases
from adl_monai.data.degradations import Degraded, RandDegraded
from adl_monai.data.monai_io import SaveImageLiked, StrictLoadImaged, VolumeReader
from adl_monai.data.noise_floor import NoiseFloord
from adl_monai.data.normalization import RobustNormalized
from adl_monai.data.training.case_cache import CaseCache
from adl_monai.data.training.crop import RandPatchd
from adl_monai.data.training.noisy_range import RandNoisyRanged, SampledIntensitiesd
from adl_monai.data.training.pad import PadPatchd
from adl_monai.data.training.patch_loader import PatchLoader
from adl_monai.data.training.patches import PatchDataset
from adl_monai.data.transforms import BlendStrengthd, CleanAsLabeld, EnsureDepthd
from adl_monai.data.volume import Volume

__all__ = [
    "BlendStrengthd",
    "CaseCache",
    "CleanAsLabeld",
    "Degraded",
    "EnsureDepthd",
    "NoiseFloord",
    "PadPatchd",
    "PatchDataset",
    "PatchLoader",
    "RandDegraded",
    "RandNoisyRanged",
    "RandPatchd",
    "RobustNormalized",
    "SampledIntensitiesd",
    "SaveImageLiked",
    "StrictLoadImaged",
    "Volume",
    "VolumeReader",
    "list_cases",
]
