"""When a run is validated."""

from __future__ import annotations

from typing import Any

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
        exec_at_start: Validate what the run starts from, too, unless it is resumed: its key metric becomes
            ``engine.state.start_metric``, and it is no epoch that could be the best. Attach behind what loads it.
    """

    def attach(self, engine: Engine) -> None:
        """Validate after epochs of ``engine``."""
        at_start, self.exec_at_start = self.exec_at_start, False  # MONAI's would validate twice, as epochs 0 and 1
        super().attach(engine)
        self.exec_at_start = at_start
        if at_start:
            engine.add_event_handler(Events.STARTED, self._validate_start)
        if self.epoch_level:
            engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self._is_last_and_left_out), self)

    def _validate_start(self, engine: Any) -> None:
        if getattr(engine.state, "resumed_from", None) is not None:
            return
        assert self.validator is not None
        with self.validator.add_event_handler(Events.EPOCH_COMPLETED, self.validator.terminate):
            self.validator.run(0)
        state = self.validator.state
        if state.best_metric_epoch != -1:  # else there is no case
            engine.state.start_metric = float(state.best_metric)
        state.best_metric, state.best_metric_epoch = -1, -1

    def _is_last_and_left_out(self, engine: Engine, epoch: int) -> bool:
        return epoch == engine.state.max_epochs and epoch % self.interval != 0
