"""Speed and memory of inference and training, beside peers and the machine's own limits: one run.

    python benchmarks/speed.py -o results/ [--part cli --part monai ...] [--pairs 5] [--quick]

What is compared takes turns (A B A B ... after a warm-up), ratios are formed within each turn, and every figure is
quoted as the median of the rounds with the least and the greatest. Run it on a machine that does nothing else.

Writes speed.json (every figure of every round) and speed.md (the same as tables), anew after each part.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from speed_parts.settings import QUICK, Report, Settings, Sizes
from speed_parts.table import markdown
from timing import Spread

from adl_monai.errors import UsageError
from adl_monai.files import replacing
from adl_monai.version import __version__

PARTS = {
    "cli": "command_line",
    "ceiling": "ceiling",
    "monai": "tiling",
    "peers": "peer_speed",
    "train": "training",
    "hold": "hold",
    "memory": "memory",
    "paper2d": "paper_network",
    "gpu": "gpu",
    "precision": "precision",
}
"""Modules of ``speed_parts`` by the name of the part; imported when measured, so that ``--help`` answers at once."""
LARGE, HUGE = 768, 1024  # voxels, of the scans for --large and --huge


def run(settings: Settings, parts: list[str], output: Path) -> dict[str, Any]:
    """Measure, and write after each part what is known by then.

    Args:
        settings: How, and how much.
        parts: Of ``PARTS``.
        output: Existing folder.

    Returns:
        What ``speed.json`` holds. A part that failed has an ``error`` and no rows.
    """
    known = {key: value for key, value in asdict(settings).items() if key != "scratch"}
    results: dict[str, Any] = {"settings": known, "machine": machine(), "parts": {}}
    for part in parts:
        if sys.stderr.isatty():
            print(f"{part} ...", file=sys.stderr)
        load = _load()
        module = importlib.import_module(f"speed_parts.{PARTS[part]}")
        error = None
        try:
            report: Report = module.measure(settings)
        except Exception as raised:  # hours may have gone into the other parts
            traceback.print_exc()
            report, error = Report([]), f"{type(raised).__name__}: {raised}"
        about = (module.__doc__ or "").strip().splitlines()[0]
        loads = {"load before": load, "load after": _load()}
        rows = [{key: _plain(value) for key, value in row.items()} for row in report.rows]
        results["parts"][part] = {"about": about, "rows": rows, "statements": list(report.statements), **loads}
        if error is not None:
            results["parts"][part]["error"] = error
        with replacing(output / "speed.json") as temporary:
            temporary.write_text(json.dumps(results, indent=1, default=str) + "\n", encoding="utf-8")
        with replacing(output / "speed.md") as temporary:
            temporary.write_text(markdown(results), encoding="utf-8")
    return results


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    from adl_monai.compute import autocast_dtype

    cpu = torch.device("cpu")
    return {
        "adl_monai": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "default precision": str(autocast_dtype("auto", cpu) or torch.float32).removeprefix("torch."),
    }


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write; holds large scans meanwhile")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="what to measure, repeatable [all]")
    parser.add_argument("--pairs", type=int, help="rounds [5; quick: 2]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scan", type=Path, help="3D scan for the command line [a generated one of 256³ voxels]")
    parser.add_argument("--crop", type=int, help="edge of the cube for the slow peers [64]")
    parser.add_argument("--volume", type=Path, action="append", help="clean scan to judge precision on, repeatable")
    parser.add_argument("--max-memory", default="2G", help="limit to measure memory under, besides none [2G]")
    parser.add_argument("--large", action="store_true", help=f"memory: a scan of {LARGE}³ voxels, too")
    parser.add_argument("--huge", action="store_true", help=f"memory: a scan of {HUGE}³ voxels, too")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; figures mean nothing")
    options = parser.parse_args()
    results = run_options(options)
    print((options.output / "speed.md").read_text(encoding="utf-8"))
    sys.exit(1 if any("error" in part for part in results["parts"].values()) else 0)


def run_options(options: argparse.Namespace) -> dict[str, Any]:
    """As the command line's options say.

    Raises:
        UsageError: If a file does not exist, or there are no rounds.
    """
    for path in (options.scan, *(options.volume or ())):
        if path is not None and not path.is_file():
            raise UsageError(f"scan {path} is not a file; pass a .nii, .nii.gz, .mha or .nrrd file.")
    if options.pairs is not None and options.pairs < 1:
        raise UsageError(f"--pairs {options.pairs} given; expected at least 1.")
    sizes = QUICK if options.quick else Sizes()
    more = [edge for edge, wanted in ((LARGE, options.large), (HUGE, options.huge)) if wanted]
    sizes = replace(sizes, memory=(*sizes.memory, *more), crop=options.crop or sizes.crop)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".speed_", dir=options.output) as scratch:
        settings = Settings(
            scratch=Path(scratch).resolve(),
            sizes=sizes,
            pairs=options.pairs or (2 if options.quick else 5),
            warmup=0 if options.quick else 1,
            seed=options.seed,
            scan=options.scan,
            volumes=tuple(options.volume or ()),
            max_memory=options.max_memory,
        )
        return run(settings, options.part or list(PARTS), options.output)


def _plain(value: Any) -> Any:
    return value.as_json() if isinstance(value, Spread) else value


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
