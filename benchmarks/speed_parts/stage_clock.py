"""Denoise one scan as ``adl-monai infer`` does, with a clock on every stage; run in an interpreter of its own.

    python stage_clock.py SCAN OUTPUT

Prints a JSON object of seconds by stage. Both stages around the network are lists of transforms: those that load or
save count as reading and writing.
"""

# ruff: noqa: E402 - the clock starts before the imports

import time

_START = time.perf_counter()

import json
import sys
from collections import defaultdict
from typing import Any

import torch
from monai.transforms import apply_transform

import adl_monai.cli
import adl_monai.stages.infer  # noqa: F401 - what the command imports
from adl_monai.bundle import load_denoiser
from adl_monai.inferers.unet_stream import UNetStream


def run(scan: str, output: str, start: float) -> dict[str, float]:
    """Seconds by stage, of work that began at ``start``."""
    seconds: dict[str, float] = defaultdict(float)

    def passed(stage: str) -> None:
        nonlocal start
        seconds[stage] += time.perf_counter() - start
        start = time.perf_counter()

    # The command's import of the bundle's own classes is in loading: the config names them.
    passed("import")
    options: dict[str, Any] = {"strength": 1.0, "series": None, "output_dtype": "same"}
    denoiser = load_denoiser(None, device="cpu", overwrite=True, progress=False, **options)
    passed("load model")
    case: Any = {"image": scan, "output": output}
    for transform in getattr(denoiser.preprocessing, "transforms", (denoiser.preprocessing,)):
        case = apply_transform(transform, case)
        passed("read" if "Load" in type(transform).__name__ else "normalise")
    clock = clock_network()
    with torch.inference_mode():
        case["pred"] = denoiser.inferer(case["image"][None], denoiser.network)[0]
    passed("planes and copies")
    seconds["network"] = clock["seconds"]
    seconds["planes and copies"] -= clock["seconds"]
    for transform in getattr(denoiser.postprocessing, "transforms", (denoiser.postprocessing,)):
        case = apply_transform(transform, case)
        passed("write" if "Save" in type(transform).__name__ else "postprocess")
    return dict(seconds)


def clock_network() -> dict[str, float]:
    """Add up the time inside the network, as the inferer runs it plane by plane, under ``seconds``."""
    clock = {"seconds": 0.0}
    push = UNetStream.push

    def timed(self: UNetStream, noisy: torch.Tensor | None, last: bool) -> torch.Tensor | None:
        start = time.perf_counter()
        denoised = push(self, noisy, last)
        clock["seconds"] += time.perf_counter() - start
        return denoised

    UNetStream.push = timed  # type: ignore[method-assign]
    return clock


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2], _START)))
