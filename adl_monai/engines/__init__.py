"""The ADL training iteration on MONAI's trainer, and the handlers around it."""

from adl_monai.engines.checkpoint import CheckpointHandler
from adl_monai.engines.ema import EMA
from adl_monai.engines.empty_epoch import EmptyEpochHandler
from adl_monai.engines.idle import IdleDenoiserHandler
from adl_monai.engines.muon import Muon
from adl_monai.engines.phases import Phase, PhaseSchedule
from adl_monai.engines.preview import PreviewHandler
from adl_monai.engines.progress import ProgressHandler, scalars
from adl_monai.engines.start import StartHandler
from adl_monai.engines.teacher import Teacher
from adl_monai.engines.trainer import ADLTrainer
from adl_monai.engines.validation import ValidationHandler

__all__ = [
    "EMA",
    "ADLTrainer",
    "CheckpointHandler",
    "EmptyEpochHandler",
    "IdleDenoiserHandler",
    "Muon",
    "Phase",
    "PhaseSchedule",
    "PreviewHandler",
    "ProgressHandler",
    "StartHandler",
    "Teacher",
    "ValidationHandler",
    "scalars",
]
