"""Training patches: a dataset whose every item is a pure function of (seed, epoch, index)."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Transform
from monai.transforms.traits import RandomizableTrait

from adl_monai.data.training.case_cache import CaseCache
from adl_monai.data.training.disk_cache import DiskCache
from adl_monai.data.training.patch_loader import errors_that_travel
from adl_monai.data.training.sparse import warn_of_sparse_scans


class PatchDataset(CaseCache):
    """So many random patches an epoch, drawn from cached cases in turn.

    The deterministic transforms up to the first random one run once a case and are cached; the random ones start from
    a random state that is computed from (seed, epoch, index) alone. So an item does not depend on the number of
    workers, the order of access, earlier items or a restart. Cases take turns over epochs: item ``i`` of epoch ``e``
    comes from case ``(e · patches_per_epoch + i) mod cases``.

    The cached volumes are not copied for each patch, so random transforms must not write into their input. (MONAI's
    spatial crops return views, and its flips, rotations and this package's degradations return new tensors.)
    Collation copies; before it, treat an item as read-only.

    Args:
        data: list of dictionaries, one a case.
        transform: ``Compose`` or a list; nested plain ``Compose`` objects are unfolded, as MONAI would cache nothing
            behind one.
        patches_per_epoch: length of the dataset.
        seed: of all random transforms.
        cache_num: most cases to cache; the others are loaded anew for each patch.
        cache_rate: share of the cases to cache.
        num_workers: threads that fill the cache.
        progress: show a bar while the cases are prepared.
        cache_dir: keep the cases in this folder instead of in memory, prepared once for all runs: for data larger than
            the memory, see ``DiskCache``. ``cache_num``, ``cache_rate`` and ``num_workers`` do not matter then.

    Raises:
        ValueError: If there are no cases, or ``patches_per_epoch`` is not positive.
        ScanFileError: Or SeriesGeometryError, OutOfMemoryError: see ``CaseCache``.
    """

    def __init__(
        self,
        data: Sequence[Any],
        transform: Compose | Sequence[Any],
        patches_per_epoch: int,
        seed: int = 0,
        cache_num: int = sys.maxsize,
        cache_rate: float = 1.0,
        num_workers: int | None = 1,
        progress: bool = False,
        cache_dir: str | Path | None = None,
    ) -> None:
        if len(data) == 0:
            raise ValueError(
                "the list of training cases is empty; give at least one case (check the manifest's training entries)."
            )
        if patches_per_epoch < 1:
            raise ValueError(f"patches_per_epoch={patches_per_epoch} given; expected at least 1.")
        self.patches_per_epoch = int(patches_per_epoch)
        self.seed = int(seed)
        # In shared memory: persistent workers hold a copy of this object and must still see a new epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        chain = (transform if isinstance(transform, Compose) else Compose(transform)).flatten()
        # The same cut as CacheDataset makes when it fills its cache.
        first = chain.get_index_of_first(lambda t: isinstance(t, RandomizableTrait) or not isinstance(t, Transform))
        self._first_random = len(chain.transforms) if first is None else first
        self._cache_dir, self._progress = cache_dir, progress
        self._disk: DiskCache | None = None
        super().__init__(
            data=data,
            transform=chain,
            cache_num=cache_num if cache_dir is None else 0,
            cache_rate=cache_rate,
            num_workers=num_workers,
            progress=progress,
            copy_cache=False,
        )

    def set_data(self, data: Sequence[Any]) -> None:
        """Take other cases, and prepare them; as in ``CacheDataset``."""
        super().set_data(data)
        if self._cache_dir is not None:
            deterministic = Compose(self.transform.transforms[: self._first_random])
            self._disk = DiskCache(self._cache_dir, data, deterministic, self._progress)
        prepared = range(len(data)) if self._disk is not None else range(self.cache_num)
        case = self._disk.glance if self._disk is not None else self._cache.__getitem__
        warn_of_sparse_scans((str(data[index].get("image")), case(index)) for index in prepared)

    @property
    def epoch(self) -> int:
        """The epoch whose patches are drawn."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw the patches of this epoch from now on; call it before the loader's iterator of the epoch is made."""
        self._epoch.fill_(int(epoch))

    def __len__(self) -> int:
        return self.patches_per_epoch

    def _transform(self, index: int) -> Any:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"patch {index} of an epoch of {len(self)} patches")
        index %= len(self)
        epoch = self.epoch
        self.transform.set_random_state(seed=patch_seed(self.seed, epoch, index))
        case = (epoch * len(self) + index) % len(self.data)
        with errors_that_travel():
            if self._disk is not None:
                return self.transform(self._disk[case], start=self._first_random)
            if case < self.cache_num:
                return self.transform(self._cache[case], start=self._first_random)
            return self.transform(self.data[case])


def patch_seed(seed: int, epoch: int, index: int) -> int:
    """A 32-bit seed that differs without pattern between neighbouring seeds, epochs and indices."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])
