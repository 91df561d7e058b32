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

STAGES = ("import", "load model", "read", "normalise", "network", "planes and copies", "postprocess", "write")
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
    """Shares are of the run they were measured in, so that they sum to 1 however busy the machine is."""
    wall = Spread(tuple(usage.seconds for usage in commands))
    staged_wall = Spread(tuple(usage.seconds for usage in staged))
    clocks = [json.loads(usage.output.splitlines()[-1]) for usage in staged]
    stages = {name: Spread(tuple(clock[name] for clock in clocks)) for name in STAGES}
    inside = Spread(tuple(sum(clock.values()) for clock in clocks))
    work = inside - stages["import"]
    rows: list[Row] = [
        {
            "run": "the command",
            "seconds": wall,
            "voxels/s": wall.rate(voxels),
            "CPU seconds": Spread(tuple(usage.cpu_seconds for usage in commands)),
        },
        {"run": "its stages, clocked", "seconds": staged_wall, "times as long as the command": staged_wall / wall},
    ]
    start = staged_wall - inside
    rows.append({"stage": "interpreter's start and end", "seconds": start, "share": start / staged_wall})
    for name, seconds in stages.items():
        row: Row = {"stage": name, "seconds": seconds, "share": seconds / staged_wall}
        rows.append(row if name == "import" else row | {"share without start and import": seconds / work})
    network = stages["network"]
    if not max(network.values):
        return Report(rows, ("The network was not seen at work: its time is in 'planes and copies'.",))
    return Report(
        rows,
        (
            f"The network has {(network / staged_wall).median:.0%} of the time, {(network / work).median:.0%} without "
            "the interpreter's start and the imports.",
        ),
    )
