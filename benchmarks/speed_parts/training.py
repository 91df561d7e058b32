"""Training steps of the default 3D preset, with its loader and from batches in memory, epochs taking turns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from ignite.engine import Events
from timing import Spread

from adl_monai.bundle import open_workflow, shipped_bundle
from speed_parts.settings import Report, Row, Settings


class TakingTurns:
    """A training loader in even epochs; in odd ones the batches that it gave before, from memory.

    Args:
        loader: Of a ``PatchDataset``, whose epoch the trainer sets.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.dataset = loader.dataset
        self.batches = list(loader)
        self.served: list[str] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        self.served.append("memory" if self.dataset.epoch % 2 else "loader")
        return iter(self.batches if self.served[-1] == "memory" else self.loader)


class EpochClock:
    """Seconds of each epoch's steps, and those spent waiting for batches; validation and checkpoints are left out."""

    def __init__(self, engine: Any, synchronize: Callable[[], object] | None = None) -> None:
        self.synchronize = synchronize or (lambda: None)
        self.steps: list[float] = []
        self.waiting: list[float] = []
        self._start = 0.0
        engine.add_event_handler(Events.EPOCH_STARTED, self._open)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._begin)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._got)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end)

    def _open(self) -> None:
        self.steps.append(0.0)
        self.waiting.append(0.0)

    def _begin(self) -> None:
        self._start = time.perf_counter()

    def _got(self) -> None:
        self.waiting[-1] += time.perf_counter() - self._start

    def _end(self) -> None:
        self.synchronize()
        self.steps[-1] += time.perf_counter() - self._start


def measure(settings: Settings, device: str = "cpu", synchronize: Callable[[], object] | None = None) -> Report:
    """Phase 1 of the default preset on generated volumes."""
    sizes = settings.sizes
    manifest = settings.scratch / "training.json"
    cases = {"kind": "leaves", "shape": [64, 64, 64], "seed": settings.seed}
    listed = {"training": [{"synthetic": {**cases, "count": sizes.training_cases}}]}
    listed["validation"] = [{"synthetic": {**cases, "count": 1, "seed": settings.seed + 1000}}]
    manifest.write_text(json.dumps(listed), encoding="utf-8")
    epochs = 2 * (settings.warmup + settings.pairs)
    overrides: dict[str, Any] = {
        "manifest": str(manifest),
        "output_dir": str(settings.scratch / f"run_{device}"),
        "device#name": device,
        "max_epochs": epochs,
        "val_interval": epochs + 1,
        "phases#denoiser": 1.0,
        "phases#discriminator": 0.0,
        "seed": settings.seed,
    }
    batch = json.loads((shipped_bundle(3) / "configs" / "train.json").read_text(encoding="utf-8"))["batch_size"]
    patches = sizes.steps * batch
    workflow = open_workflow(
        shipped_bundle(3), ("train", "default"), "train", overrides | {"patches_per_epoch": patches}
    )
    workflow.initialize()
    trainer: Any = workflow.trainer
    trainer.data_loader = TakingTurns(trainer.data_loader)
    clock = EpochClock(trainer, synchronize)
    trainer.run()
    if trainer.data_loader.served != ["memory", "loader"] * (epochs // 2):
        raise RuntimeError(f"the loaders did not take turns: {trainer.data_loader.served}.")
    skip = 2 * settings.warmup
    memory, loader = Spread(tuple(clock.steps[skip::2])), Spread(tuple(clock.steps[skip + 1 :: 2]))
    waiting = Spread(tuple(clock.waiting[skip + 1 :: 2]))
    rows: list[Row] = [
        {"batches": "from memory", "patches/s": memory.rate(patches), "seconds a step": memory.scaled(1 / sizes.steps)},
        {
            "batches": "from the loader",
            "patches/s": loader.rate(patches),
            "seconds a step": loader.scaled(1 / sizes.steps),
            "loader's share of the time": (loader - memory) / loader,
            "spent waiting for batches": waiting / loader,
        },
    ]
    share = rows[1]["loader's share of the time"].median
    return Report(rows, (f"The loader takes {share:.0%} of the training time (batches of {batch}, patches/s above).",))
