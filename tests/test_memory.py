"""What may be taken: the least of what the machine has free and what the control groups around the process allow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from adl_monai.memory import available_memory, memory_budget

GIB = 2**30
FREE = 20 * GIB

Machine = Callable[..., Path]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with 20 GiB free, the lines of ``/proc/self/cgroup``, and files below ``/sys/fs/cgroup``."""

    def build(*lines: str, **files: dict[str, object]) -> Path:
        (tmp_path / "proc/self").mkdir(parents=True)
        lines_of_memory = {"MemTotal": 99999999, "MemAvailable": FREE // 1024}
        lines_of_memory |= dict.fromkeys(("MemFree", "Buffers", "Cached", "Shmem", "Active", "Inactive"), 7)
        (tmp_path / "proc/meminfo").write_text("".join(f"{key}: {kb} kB\n" for key, kb in lines_of_memory.items()))
        monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
        (tmp_path / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))
        for folder, contents in files.items():
            group = tmp_path / "sys/fs/cgroup" / folder.replace("__", "/").strip("/")
            group.mkdir(parents=True, exist_ok=True)
            for name, text in contents.items():
                (group / name.replace("__", ".")).write_text(f"{text}\n")
        return tmp_path

    return build


def version2(limit: object, used: int = 0, droppable: int = 0) -> dict[str, object]:
    # Real files name inactive_anon first, and slab_unreclaimable after it.
    statistics = f"anon 1\ninactive_anon 7\ninactive_file {droppable}\nactive_file 3"
    return {"memory__max": limit, "memory__current": used, "memory__stat": statistics}


def version1(limit: int, used: int = 0, droppable: int = 0) -> dict[str, object]:
    statistics = f"cache 1\ninactive_file 5\ntotal_cache 1\ntotal_inactive_file {droppable}"
    return {"memory__limit_in_bytes": limit, "memory__usage_in_bytes": used, "memory__stat": statistics}


def test_of_this_machine() -> None:
    assert 0 < available_memory() < psutil.virtual_memory().total
    assert memory_budget(None) == pytest.approx(available_memory() / 2, rel=0.2)
    assert memory_budget(123.0) == 123.0


def test_without_limits_all_that_is_free(machine: Machine) -> None:
    assert available_memory(machine("0::/user.slice", user=version2("max"), __=version2("max"))) == FREE


def test_of_a_container(machine: Machine) -> None:
    """Which sees its own group as the root; files that were only read do not count as used."""
    assert available_memory(machine("0::/", __=version2(4 * GIB, used=3 * GIB, droppable=2 * GIB))) == 3 * GIB


def test_of_a_batch_job_the_narrowest_of_its_groups(machine: Machine) -> None:
    root = machine(
        "0::/slurm/job_7/step_0",
        __={},  # the outermost group has none of these files
        slurm=version2(64 * GIB, used=60 * GIB),
        slurm__job_7=version2(8 * GIB, used=GIB),
        slurm__job_7__step_0=version2("max", used=GIB),
        slurm__job_8=version2(GIB),  # somebody else's
    )
    assert available_memory(root) == 4 * GIB


@pytest.mark.parametrize("path", ["/docker/0a1b", "/../0a1b"])
def test_of_a_container_with_the_first_version(machine: Machine, path: str) -> None:
    """Where the kernel names a path of the host, which is not mounted inside."""
    root = machine(f"4:cpu,memory:{path}", "1:cpu:/", "0::/", memory=version1(2 * GIB, used=GIB // 2))
    assert available_memory(root) == 3 * GIB // 2


def test_no_limit_of_the_first_version(machine: Machine) -> None:
    root = machine("4:memory:/a", "0::/", memory=version1(2**63 - 4096, GIB), memory__a=version1(2**63 - 4096, GIB))
    assert available_memory(root) == FREE


def test_a_limit_that_is_used_up_leaves_nothing(machine: Machine) -> None:
    assert available_memory(machine("0::/", __=version2(GIB, used=2 * GIB))) == 0
