"""When a run is validated."""

from __future__ import annotations

import monai.handlers
from ignite.engine import Engine, Events


class ValidationHandler(monai.handlers.ValidationHandler):
    """MONAI's, which also validates after the last epoch when the interval does not meet it.

    The model of a run is that of its best validation, and the learning rate is lowest, the average of the weights best,
    at the end.

    Args:
        interval: Validate every so many epochs.
        validator: MONAI evaluator.
        epoch_level: False counts iterations; then the last is not added.
        exec_at_start: Validate before the first epoch, too.
    """

    def attach(self, engine: Engine) -> None:
        """Validate after epochs of ``engine``."""
        super().attach(engine)
        if self.epoch_level:
            engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self._is_last_and_left_out), self)

    def _is_last_and_left_out(self, engine: Engine, epoch: int) -> bool:
        return epoch == engine.state.max_epochs and epoch % self.interval != 0
