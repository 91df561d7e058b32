"""One process of several under torchrun: its share of the scans, of the cores and of the GPUs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from adl_monai.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed import Store

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
_POLL = 0.5  # seconds
_CONNECT = 30  # seconds


@dataclass(frozen=True)
class Shard:
    """Which process this is, of how many; the default is a process by itself.

    Args:
        rank: From 0, among all processes.
        count: Of all processes.
        local_rank: From 0, among those of this machine.
        local_count: Of those of this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @classmethod
    def from_environment(cls) -> Shard:
        """What torchrun says: RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE.

        Raises:
            UsageError: If they are no numbers, or contradict one another.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        values = [os.environ.get(name, default) for name, default in zip(names, "0101", strict=True)]
        try:
            rank, count, local_rank, local_count = (int(value) for value in values)
            if not (0 <= rank < count and 0 <= local_rank < local_count <= count):
                raise ValueError
        except ValueError:
            found = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
            raise UsageError(
                f"the environment has {found}, not one process of several; start them with torchrun, or unset these."
            ) from None
        return cls(rank, count, local_rank, local_count)

    def share(self, items: Sequence[Item], sizes: Sequence[int]) -> list[Item]:
        """This process's items, in their order; each item is exactly one process's.

        The largest goes first, to the process that has the least: all processes come to the same result by themselves,
        if they see the same items and sizes.

        Args:
            items: To share out.
            sizes: Of each; in bytes, or any unit.
        """
        loads = [0] * self.count
        mine = []
        for index in sorted(range(len(items)), key=lambda index: (-sizes[index], index)):
            rank = loads.index(min(loads))
            loads[rank] += max(1, sizes[index])
            if rank == self.rank:
                mine.append(index)
        return [items[index] for index in sorted(mine)]

    def device(self, name: str) -> str:
        """The device for this process: of a machine's GPUs, its own, unless one was named."""
        import torch

        if self.count > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return name

    def use_its_cores(self) -> None:
        """Let torch use this process's share of the machine's cores.

        torchrun sets OMP_NUM_THREADS to 1 where it is not set; any other number is the user's and stays.
        """
        if self.local_count > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
            import torch

            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            torch.set_num_threads(max(1, cores // self.local_count))

    @contextmanager
    def outlasting_the_others(self) -> Iterator[None]:
        """Around the work of one process: if it fails, the error comes out only when the others are done.

        torchrun ends all processes as soon as one of them fails, so one damaged scan would cost the others their work.
        """
        try:
            yield
        except Exception:
            store = self._store()
            if store is not None:
                self._wait(store)
            raise
        store = self._store()
        if store is not None:
            _count(store, 1)

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.count}"

    def _store(self) -> Store | None:
        """torchrun's own table of keys and values; None without it."""
        if self.count == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return None
        from torch.distributed import TCPStore

        try:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=_CONNECT))
        except (RuntimeError, KeyError, ValueError) as error:
            logger.debug("torchrun's store cannot be reached: %s", error)
            return None

    def _wait(self, store: Store) -> None:
        done = _count(store, 1)
        while 0 < done < self.count:
            time.sleep(_POLL)  # not the store's own wait, which no signal can end
            done = _count(store, 0)


def _count(store: Store, more: int) -> int:
    """How many processes are done, with this one if ``more`` is 1; 0 if torchrun has gone."""
    try:
        return store.add(f"adl_monai/done/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", more)
    except RuntimeError:
        return 0
