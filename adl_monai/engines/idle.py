"""Notice a denoiser that does nothing: rectified layers without normalisation can die, and then output = input."""

from __future__ import annotations

import logging

from ignite.engine import Events
from monai.engines import Workflow

logger = logging.getLogger(__name__)

LEAST_GAIN = 0.1  # dB
PATIENCE = 5  # validations


class IdleDenoiserHandler:
    """Warns, once, when five validations in a row find the denoised images no better than the noisy ones.

    Attach to the evaluator, whose metrics hold ``psnr`` and ``psnr_noisy``.

    Args:
        active: False on every process but the first.
    """

    def __init__(self, active: bool = True) -> None:
        self.active = active
        self.idle = 0

    def attach(self, engine: Workflow) -> None:
        """Follow an evaluator."""
        if self.active:
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Compare the two figures of the validation that has ended."""
        metrics = engine.state.metrics
        if "psnr" not in metrics or "psnr_noisy" not in metrics:
            return
        self.idle = self.idle + 1 if metrics["psnr"] < metrics["psnr_noisy"] + LEAST_GAIN else 0
        if self.idle == PATIENCE:
            logger.warning(
                "epoch %d: the denoised images are no better than the noisy ones (%.2f dB, noisy %.2f dB). The network "
                "may have died or the noise may be too weak to see: lower learning_rate, or check validation_sigma.",
                engine.state.epoch,
                metrics["psnr"],
                metrics["psnr_noisy"],
            )
