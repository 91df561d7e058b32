"""Greatest resident memory of ``adl-monai infer`` by the size of the scan, each run in a process of its own."""

from __future__ import annotations

import sys

from peak_memory import Usage, run_alone

from speed_parts.command_line import infer_command
from speed_parts.scans import write_scan
from speed_parts.settings import Report, Row, Settings

GIB = 2**30
OPTION = "--max-memory"


def has_option(option: str) -> bool:
    """Whether ``adl-monai infer`` knows an option."""
    return option in run_alone([sys.executable, "-m", "adl_monai", "infer", "--help"]).output


def measure(settings: Settings) -> Report:
    """Sizes from small to large, each with and without a memory limit where the command has one."""
    variants: dict[str, tuple[str, ...]] = {"default": ()}
    if has_option(OPTION):
        variants[f"{OPTION} {settings.max_memory}"] = (OPTION, settings.max_memory)
    imports = run_alone([sys.executable, "-c", "import adl_monai.stages.infer"])
    rows: list[Row] = [{"scan": "none: the imports alone", "peak GiB": imports.peak_bytes / GIB}]
    for edge in settings.sizes.memory:
        scan = write_scan(settings.scratch / f"scan_{edge}.nii", edge, settings.seed)
        output = settings.scratch / f"denoised_{edge}.nii"
        for name, options in variants.items():
            usage = run_alone(infer_command(scan, output, *options), check=False)
            rows.append(_row(edge, name, usage, imports))
            output.unlink(missing_ok=True)
        scan.unlink()  # gigabytes each
    missing = () if len(variants) > 1 else (f"The command has no {OPTION}: it was measured without.",)
    return Report(rows, missing)


def _row(edge: int, name: str, usage: Usage, imports: Usage) -> Row:
    row: Row = {"scan": f"{edge}³ int16", "options": name, "peak GiB": usage.peak_bytes / GIB}
    if usage.code != 0:
        reason = usage.errors.strip().splitlines()[-1:] or [""]
        return row | {"failed": f"code {usage.code}: {reason[0][:200]}"}
    return row | {
        "bytes per voxel beyond the imports": (usage.peak_bytes - imports.peak_bytes) / edge**3,
        "seconds": usage.seconds,
        "CPU seconds": usage.cpu_seconds,
        "voxels/s": edge**3 / usage.seconds,
    }
