"""What training patches cost: CPU time of one batch against that of one step, on one core.

    OMP_NUM_THREADS=1 python benchmarks/loader.py MANIFEST [--dims 2] [--preset release] [--set KEY=VALUE]

One thread, because threads that wait count as busy. Volumes should be of the usual size; generated ones will do.
"""

from __future__ import annotations

import argparse
import ast
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from adl_monai.bundle import open_workflow, shipped_bundle


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of the whole process, and what ``work`` returned."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def measure(manifest: Path, dims: int, preset: str, batches: int, settings: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of a batch and of a step of the first phase, means over ``batches``."""
    with TemporaryDirectory() as folder:
        values = {"manifest": str(manifest.resolve()), "output_dir": folder, "device#name": "cpu", **settings}
        workflow = open_workflow(shipped_bundle(dims), ("train", preset), "train", values)
        workflow.initialize()
        trainer, loader = workflow.trainer, workflow.parser.get_parsed_content("train#dataloader")
        trainer.state.epoch, trainer.state.max_epochs, trainer.state.iteration = 1, 1000, 0
        trainer.start_epoch()
        alone = torch.utils.data.DataLoader(loader.dataset, loader.batch_size, collate_fn=loader.collate_fn)
        iterator = iter(alone)
        trainer._iteration(trainer, next(iterator))  # first steps allocate
        loading, drawn = cpu_seconds(lambda: list(islice(iterator, batches)))
        stepping, _ = cpu_seconds(lambda: [trainer._iteration(trainer, batch) for batch in drawn])
        return {"batch": loading / len(drawn), "step": stepping / len(drawn)}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--dims", type=int, choices=(2, 3), default=3)
    parser.add_argument("--preset", choices=("default", "release", "paper"), default="default")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of train.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {}
    for item in options.set:
        key, _, text = item.partition("=")
        try:
            settings[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            settings[key] = text
    cost = measure(options.manifest, options.dims, options.preset, options.batches, settings)
    print(
        f"adl{options.dims}d {options.preset}: batch {1000 * cost['batch']:.1f} ms, step {1000 * cost['step']:.1f} ms, "
        f"loader's share {100 * cost['batch'] / cost['step']:.1f} %"
    )


if __name__ == "__main__":
    main()
