"""An epoch without a step is no training."""

from __future__ import annotations

from ignite.engine import Engine, Events

from adl_monai.errors import UsageError


class EmptyEpochHandler:
    """Stops a trainer whose loader gives nothing, where ignite would count the epoch as done.

    Attach it before what validates and saves.
    """

    def attach(self, engine: Engine) -> None:
        """Look at each epoch of ``engine``."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._check)

    def _start(self, engine: Engine) -> None:
        self._iteration = engine.state.iteration

    def _check(self, engine: Engine) -> None:
        if engine.state.iteration == self._iteration:
            raise UsageError(
                f"the loader gave no batch in epoch {engine.state.epoch}; expected at least one. Give more patches or "
                "a smaller batch, and a loader that raises what goes wrong in it, as adl_monai.data.PatchLoader does."
            )
