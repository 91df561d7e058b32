"""How much memory denoising may take: of what the machine has free, and what a container or a batch job allows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil
import torch

# Where each version of Linux's control groups keeps a group's limit, its use and, within that, files it could drop.
_VERSIONS = {
    1: ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
}


def memory_budget(max_memory: float | None, device: torch.device | None = None) -> float:
    """Bytes that denoising may use: ``max_memory``, or half of what is free where None is given.

    Args:
        max_memory: What was asked for.
        device: Whose memory counts; None is the CPU's.
    """
    if max_memory is not None:
        return max_memory
    free = torch.cuda.mem_get_info(device)[0] if device is not None and device.type == "cuda" else available_memory()
    return free / 2


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process can take now without swapping or being killed for it, about.

    The machine's free memory, or what is left below the limits of the control groups that hold the process (Docker,
    Kubernetes, Slurm), whichever is less.

    Args:
        root: Where ``proc`` and ``sys`` are that tell of control groups.
    """
    return max(0, min([psutil.virtual_memory().available, *_groups(root)]))


def _groups(root: Path) -> Iterator[int]:
    """What is left in each control group around this process that has a limit.

    Limits of outer groups count for inner ones. A container sees its own group as the outermost, whatever path the
    kernel names.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base, *names = _VERSIONS[1 if controllers else 2]
        inner = PurePosixPath(path.lstrip("/"))
        for group in (inner, *inner.parents):
            if ".." not in group.parts:
                yield from _left(root / base / group, *names)


def _left(group: Path, limit: str, usage: str, droppable: str) -> Iterator[int]:
    try:
        most = (group / limit).read_text(encoding="ascii").strip()
        if most == "max":
            return
        used = int((group / usage).read_text(encoding="ascii"))
        statistics = (group / "memory.stat").read_text(encoding="ascii")
    except OSError:  # no such group here, or it does not say
        return
    found = re.search(rf"^{droppable} (\d+)", statistics, re.MULTILINE)
    yield int(most) - used + (int(found[1]) if found else 0)
