"""The whole command line on one scan, on the CPU, and where its time goes, stage by stage."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from peak_memory import Usage, run_alone
from timing import Spread, interleave

from adl_monai.data.io import read_volume
from speed_parts.scans import write_scan
from speed_parts.settings import Report, Row, Settings

STAGES = ("import", "load model", "read", "normalise", "network", "tiles and blending", "postprocess", "write")
SCRIPT = Path(__file__).with_name("stage_clock.py")


def infer_command(scan: Path, output: Path, *options: str) -> list[str]:
    """``adl-monai infer`` on the CPU, with this interpreter."""
    command = [sys.executable, "-m", "adl_monai", "-q", "infer", str(scan), "-o", str(output)]
    return [*command, "--device", "cpu", "--overwrite", *options]


def scan_of(settings: Settings) -> tuple[Path, int]:
    """The scan that the command line is given, and its voxels."""
    scan = settings.scan or write_scan(settings.scratch / "scan.nii.gz", settings.sizes.scan, settings.seed)
    return scan, read_volume(scan).array.size


def measure(settings: Settings) -> Report:
    """Command and stages in turn, each in an interpreter of its own."""
    scan, voxels = scan_of(settings)
    output = settings.scratch / "denoised.nii.gz"
    stage_command = [sys.executable, str(SCRIPT), str(scan), str(settings.scratch / "staged.nii.gz")]
    commands, staged = [], []
    interleave(
        {
            "command": lambda: commands.append(run_alone(infer_command(scan, output))),
            "stages": lambda: staged.append(run_alone(stage_command)),
        },
        settings.pairs,
        warmup=settings.warmup,
    )
    return _report(commands[-settings.pairs :], staged[-settings.pairs :], voxels)


def _report(commands: list[Usage], staged: list[Usage], voxels: int) -> Report:
    wall = Spread(tuple(usage.seconds for usage in commands))
    staged_wall = Spread(tuple(usage.seconds for usage in staged))
    clocks = [json.loads(usage.output.splitlines()[-1]) for usage in staged]
    stages = {name: Spread(tuple(clock[name] for clock in clocks)) for name in STAGES}
    inside = Spread(tuple(sum(clock.values()) for clock in clocks))
    start = staged_wall - inside
    work = wall - start - stages["import"]
    rows: list[Row] = [
        {
            "stage": "the command, as a whole",
            "seconds": wall,
            "share of the whole": None,
            "share without start and import": None,
            "voxels/s": wall.rate(voxels),
            "CPU seconds": Spread(tuple(usage.cpu_seconds for usage in commands)),
        },
        {"stage": "interpreter's start and end", "seconds": start, "share of the whole": start / wall},
    ]
    for name, seconds in stages.items():
        row = {"stage": name, "seconds": seconds, "share of the whole": seconds / wall}
        if name != "import":
            row["share without start and import"] = seconds / work
        rows.append(row)
    rows.append(
        {"stage": "all stages, against the command", "seconds": staged_wall, "share of the whole": staged_wall / wall}
    )
    network = stages["network"]
    if not max(network.values):
        return Report(rows, ("The network's forwards were not seen: their time is in 'tiles and blending'.",))
    return Report(
        rows,
        (
            f"The network has {(network / wall).median:.0%} of the command's time, {(network / work).median:.0%} "
            "without the interpreter's start and the imports.",
        ),
    )
