"""Prepared cases in memory: every fault among them is told at once, a lack of memory before the system kills."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset

from adl_monai.errors import (
    AdlError,
    OutOfMemoryError,
    ScanFileError,
    SeriesGeometryError,
    release_variables,
    user_error,
)
from adl_monai.memory import available_memory

LEAST_LEFT = 2**30  # bytes, for training itself
COPIES = 4  # of a case while it is prepared
LISTED = 20


class Refusals:
    """Cases with a fault: those who mend their data want to know of all, not of one in each run.

    Args:
        total: How many cases there are.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.errors: list[AdlError] = []

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Around the preparation of a case: take down a scan's own fault; any other error passes."""
        try:
            yield
        except Exception as raised:
            error = user_error(raised)
            if not isinstance(error, ScanFileError | SeriesGeometryError):
                raise
            release_variables(raised)
            self.errors.append(error)

    def raise_them(self) -> None:
        """Raise the fault, or what lists the faults, if there are any."""
        if not self.errors:
            return
        first, count = self.errors[0], len(self.errors)
        if count == 1:
            raise first
        listed = "".join(f"\n  {error}" for error in self.errors[:LISTED])
        more = f"\n  and {count - LISTED} more" if count > LISTED else ""
        raise type(first)(f"{count} of {self.total} scans cannot be used; mend or remove them:{listed}{more}")


class CaseCache(CacheDataset):
    """MONAI's ``CacheDataset``, for scans as people have them.

    Raises:
        ScanFileError: Or SeriesGeometryError: if scans are damaged or unusable; all of them are named.
        OutOfMemoryError: If the cases are about to fill the memory: the system would kill the process without a word.
    """

    def set_data(self, data: Sequence[Any]) -> None:
        """Take other cases, and prepare them; as in ``CacheDataset``."""
        self._held, self._largest, self._prepared = 0, 0, 0
        self._refusals = Refusals(len(data))
        super().set_data(data)
        self._refusals.raise_them()

    def _load_cache_item(self, idx: int) -> Any:
        with self._refusals.collecting():
            item = super()._load_cache_item(idx)
            self._count(item)
            return item
        return None

    def _count(self, item: Any) -> None:
        size = sum(value.nbytes for value in item.values() if isinstance(value, torch.Tensor | np.ndarray))
        self._held, self._largest, self._prepared = self._held + size, max(self._largest, size), self._prepared + 1
        if sys.platform != "linux":  # other systems swap before they kill
            return
        left = available_memory()
        if self._prepared < self.cache_num and left < min(self._held, LEAST_LEFT + COPIES * self._largest):
            raise OutOfMemoryError(
                f"not enough memory to keep the scans to train on: {self._prepared} of {self.cache_num} take "
                f"{self._held / 2**30:.1f} GiB, {left / 2**30:.1f} GiB are left. Keep them on a disk (--set "
                "cache_dir=FOLDER), keep fewer (--set cache_rate=0.5, slower), or use a machine with more."
            )
