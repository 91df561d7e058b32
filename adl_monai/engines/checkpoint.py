"""Checkpoints that survive a kill at any moment, and from which a run goes on bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from ignite.engine import Events
from monai.engines import Workflow

from adl_monai.data.output import sync
from adl_monai.engines.restore import restore
from adl_monai.errors import ModelError, OutputError, UsageError, is_out_of_memory
from adl_monai.files import exchanging, temporary_start

logger = logging.getLogger(__name__)

FORMAT = 1


class CheckpointHandler:
    """Saves the whole state of a run after every epoch, and the best weights as a bare state_dict.

    In ``save_dir``: ``last.pt`` (full state), ``previous.pt`` (the one before it) and ``best.pt`` (full state of the
    epoch with the best validation metric). ``model_path`` holds the weights to ship: those of the best epoch, or of the
    last one where there is no validation.

    Epochs are the unit of resuming. The generators' states need not be saved: the trainer derives each epoch's
    randomness from the seed and the epoch's number, and each patch is a function of seed, epoch and index. A run may go
    on with another number of steps in an epoch; its steps are then counted as if it had always had that.

    Args:
        save_dir: Folder for the checkpoints; created on the first save.
        objects: What to save, by name: anything with ``state_dict`` and ``load_state_dict``. None values are left out.
        model: The network whose weights are shipped (the average): one of ``objects``, or inside one.
        model_path: Where its bare state_dict goes.
        evaluator: Engine whose key metric decides what is best; its best value is part of the checkpoint.
        resume: Go on from ``last.pt`` if it exists.
        facts: Plain values that must not change between the parts of a run (seed, hashes). A difference is refused.
        active: False on every process but the first, which then only load.
    """

    def __init__(
        self,
        save_dir: str | Path,
        objects: Mapping[str, Any],
        model: torch.nn.Module,
        model_path: str | Path,
        evaluator: Workflow | None = None,
        resume: bool = False,
        facts: Mapping[str, Any] | None = None,
        active: bool = True,
    ) -> None:
        self.save_dir = Path(save_dir)
        self.objects = {name: item for name, item in objects.items() if item is not None}
        self.model = model
        self.model_path = Path(model_path)
        self.evaluator = evaluator
        self.resume = resume
        self.facts = dict(facts or {})
        self.active = active
        self._saved_best_epoch = -1

    def attach(self, engine: Workflow) -> None:
        """Load when the run starts, save when an epoch is completed. Attach after schedulers and validation.

        ``engine.state.resumed_from`` tells other handlers which checkpoint will be loaded, None for a fresh start.
        """
        engine.state.resumed_from = self._newest() if self.resume else None
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save(self, engine: Workflow) -> None:
        """Write ``last.pt`` and, after a new best epoch, ``best.pt`` and the weights.

        Raises:
            OutputError: If the disk is full or may not be written; the checkpoint before is kept.
        """
        best_epoch = self._best_epoch()
        improved = best_epoch != self._saved_best_epoch
        self._saved_best_epoch = best_epoch
        if not self.active:
            return
        state = self._state(engine)
        try:
            self.save_dir.mkdir(parents=True, exist_ok=True)
            # last.pt comes last: killed before it, a resumed run repeats this epoch and writes the others again.
            if best_epoch == -1 or improved:
                self.model_path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.model.state_dict(), self.model_path)
            if improved:
                write_atomically(state, self.save_dir / "best.pt")
            write_atomically(state, self.save_dir / "last.pt", keep=self.save_dir / "previous.pt")
        except OSError as error:
            raise OutputError(
                f"the checkpoint of epoch {engine.state.epoch} cannot be written to {self.save_dir} "
                f"({error.strerror or error}); the one before is kept. Make room and go on with --resume."
            ) from error

    def load(self, engine: Workflow) -> None:
        """Put the state of the newest whole checkpoint into the run, if resuming was asked for.

        Raises:
            ModelError: If it cannot be read, or is of another run, or the weights to ship are lost.
            OutputError: If these were, and cannot be written again.
            UsageError: If the run has had more epochs than it is to have.
        """
        if not self.resume:
            return
        path = self._newest()
        if path is None:
            logger.warning("no checkpoint in %s yet: starting from the beginning", self.save_dir)
            return
        state = read_checkpoint(path)
        self._check(state, path)
        if state["epoch"] > engine.state.max_epochs:  # what the run is told to be is recorded, and would be untrue
            raise UsageError(
                f"the run has had {state['epoch']} epochs, more than max_epochs, which is {engine.state.max_epochs}; "
                "give at least as many (--epochs), or start a new run in another folder."
            )
        try:
            restore(self.objects, state["objects"], state["epoch"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:200]  # torch's first line names the class alone
            raise ModelError(
                f"{path} does not fit this run ({reason}); resume with the options that the "
                "run was started with, or start a new run in another folder."
            ) from error
        engine.state.epoch = state["epoch"]
        # In steps of the present length: by those of another batch size, ignite would take the run for ended.
        length = engine.state.epoch_length
        engine.state.iteration = state["iteration"] if length is None else state["epoch"] * length
        if self.evaluator is not None and state["best_epoch"] != -1:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_epoch"]
        engine.state.start_metric = state.get("start_metric")
        self._saved_best_epoch = state["best_epoch"]
        if self.active and not self.model_path.exists():
            self._write_model_again(state["best_epoch"], state["epoch"])
        logger.info("resumed from %s after epoch %d", path, state["epoch"])

    def _newest(self) -> Path | None:
        return next((p for p in (self.save_dir / "last.pt", self.save_dir / "previous.pt") if p.exists()), None)

    def _write_model_again(self, best_epoch: int, last_epoch: int) -> None:
        """Put back the weights to ship: no epoch to come may be better than the one they are of."""
        path = self.save_dir / "best.pt"
        weights = self.model.state_dict()
        if best_epoch not in (-1, last_epoch):
            try:
                weights = self._weights(read_checkpoint(path))
            except (ModelError, KeyError, StopIteration) as error:
                raise ModelError(
                    f"the run's model {self.model_path} is missing, and {path}, from which it could be written again, "
                    "is missing or damaged; put back either from a copy, or start a new run in another folder."
                ) from error
        try:
            self.model_path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(weights, self.model_path)
        except OSError as error:
            raise OutputError(
                f"the run's model cannot be written to {self.model_path} ({error.strerror or error}). Make room and go "
                "on with --resume."
            ) from error
        logger.info("wrote %s again, which was missing", self.model_path)

    def _weights(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Those of ``model`` in a checkpoint, where it is one of the saved networks or inside one (an average)."""
        networks = {name: item for name, item in self.objects.items() if isinstance(item, torch.nn.Module)}
        name, prefix = next(
            (name, f"{inner}." if inner else "")
            for name, network in networks.items()
            for inner, module in network.named_modules()
            if module is self.model
        )
        values = state["objects"][name].items()
        return {key.removeprefix(prefix): value for key, value in values if key.startswith(prefix)}

    def _best_epoch(self) -> int:
        return -1 if self.evaluator is None else int(self.evaluator.state.best_metric_epoch)

    def _state(self, engine: Workflow) -> dict[str, Any]:
        best = self._best_epoch()
        return {
            "format": FORMAT,
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "best_epoch": best,
            "best_metric": float(self.evaluator.state.best_metric)
            if self.evaluator is not None and best != -1
            else None,
            "start_metric": getattr(engine.state, "start_metric", None),
            "facts": self.facts,
            "objects": {name: item.state_dict() for name, item in self.objects.items()},
        }

    def _check(self, state: Mapping[str, Any], path: Path) -> None:
        if state.get("format") != FORMAT or set(state.get("objects", {})) != set(self.objects):
            raise ModelError(
                f"{path} is not a checkpoint of this kind of run (it holds {sorted(state.get('objects', {}))}, "
                f"expected {sorted(self.objects)}); resume with the options that the run was started with, or start "
                "a new run."
            )
        changed = [key for key, value in self.facts.items() if state.get("facts", {}).get(key) != value]
        if changed:
            raise ModelError(
                f"{path} belongs to a run with another {', '.join(changed)}; resume with the manifest and options that "
                "the run was started with, or start a new run in another folder."
            )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's state: tensors and plain values only.

    Raises:
        ModelError: If the file is damaged or holds anything else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}")
    except Exception as error:  # of many kinds, as many as ways to damage a file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(
            f"checkpoint {path} cannot be read ({reason}): the file is damaged. Remove it and pass --resume again: the "
            "run goes on from previous.pt, or from the beginning if there is none."
        ) from error
    return state


def write_atomically(state: Any, path: Path, keep: Path | None = None) -> None:
    """Save ``state`` so that a whole file is there at every moment.

    Args:
        state: What ``torch.save`` takes.
        path: Holds the old file until it holds the new one.
        keep: Where the old file goes; between the two renames it is the only one.

    Raises:
        OSError: If it cannot be written; the old file stays.
    """
    for left in path.parent.glob(f"{temporary_start(path)}*.tmp"):  # by a run that was killed; as large as this one
        left.unlink(missing_ok=True)
    with exchanging(path, keep) as temporary, temporary.open("wb") as file:
        _save(state, file)
    sync(path.parent)  # the new name


def _save(state: Any, file: IO[bytes]) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:
        refused = error.__context__
        if isinstance(refused, OSError):  # torch's writer hides the disk's own error behind "unexpected pos"
            raise OSError(refused.errno, refused.strerror) from error
        raise
