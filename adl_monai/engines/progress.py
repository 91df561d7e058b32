"""What a person sees of a running training: a progress bar on a terminal, one log line per epoch."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from ignite.engine import Events
from monai.engines import Workflow
from tqdm import tqdm

logger = logging.getLogger("adl_monai")


def scalars(output: dict[str, Any]) -> dict[str, float]:
    """The loss and each of its terms as numbers, from a trainer's output (an ``output_transform`` for TensorBoard)."""
    return {"loss": float(output["loss"]), **{name: float(value) for name, value in output["terms"].items()}}


class ProgressHandler:
    """A bar with loss, phase, patches per second and time left; quiet when the error stream is not a terminal.

    Args:
        evaluator: Engine whose metrics are shown after each validation.
        show: True or False to force the bar; None shows it on a terminal only.
        active: False on every process but the first.
    """

    def __init__(self, evaluator: Workflow | None = None, show: bool | None = None, active: bool = True) -> None:
        self.evaluator = evaluator
        self.show = (sys.stderr.isatty() if show is None else show) and active
        self.active = active
        self._bar: tqdm[Any] | None = None
        self._patches = 0
        self._loss = 0.0
        self._epoch_start = 0.0
        self._rate = 0.0

    def attach(self, engine: Workflow) -> None:
        """Follow ``engine``. Attach after the validation handler, whose metrics belong to the epoch's line."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._close)

    def _open(self, engine: Workflow) -> None:
        if self.show:
            total = engine.state.max_epochs * engine.state.epoch_length
            self._bar = tqdm(total=total, unit="it", dynamic_ncols=True, file=sys.stderr, smoothing=0.05)
        if self.active and getattr(engine.state, "start_metric", None) is not None and self._validated(0):
            self._tell(f"start{self._metrics()}")

    def _start_epoch(self, engine: Workflow) -> None:
        self._patches, self._loss, self._epoch_start = 0, 0.0, time.perf_counter()
        if self._bar is not None and self._bar.n < engine.state.iteration:
            self._bar.initial = engine.state.iteration
            self._bar.n = engine.state.iteration
            self._bar.refresh()

    def _advance(self, engine: Workflow) -> None:
        output = engine.state.output
        self._patches += len(output["image"])
        self._loss += float(output["loss"])
        # Here and not at the epoch's end, which comes after validation.
        self._rate = self._patches / max(time.perf_counter() - self._epoch_start, 1e-9)
        if self._bar is not None:
            self._bar.set_description(f"epoch {engine.state.epoch}/{engine.state.max_epochs}", refresh=False)
            phase = getattr(engine, "phase", None)
            facts = {"phase": phase.value} if phase is not None else {}
            self._bar.set_postfix(
                **facts, loss=f"{float(output['loss']):.4f}", patches=f"{self._rate:.1f}/s", refresh=False
            )
            self._bar.update()

    def _end_epoch(self, engine: Workflow) -> None:
        if not self.active:
            return
        phase = getattr(engine, "phase", None)
        line = (
            f"epoch {engine.state.epoch}/{engine.state.max_epochs} {phase.value if phase is not None else ''}: "
            f"loss {self._loss / max(engine.state.epoch_length, 1):.5f}, {self._rate:.1f} patches/s"
        )
        self._tell(line + (self._metrics() if self._validated(engine.state.epoch) else ""))

    def _validated(self, epoch: int) -> bool:
        return self.evaluator is not None and self.evaluator.state.epoch == epoch

    def _metrics(self) -> str:
        assert self.evaluator is not None
        return "".join(f", {name} {value:.4f}" for name, value in self.evaluator.state.metrics.items())

    def _tell(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        logger.info(line)

    def _close(self, engine: Workflow, error: BaseException | None = None) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if error is not None:
            raise error  # ignite leaves re-raising to whoever handles the event
