"""When a series is complete: DICOM has no word for it, so an association's end and some quiet have to do.

An association that is not released (aborted, cut off, silent for too long, or open when this program ended) is evidence
that something is missing. That needs no mark on the disk: after a restart, every series that was arriving is suspect.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Protocol

STALE = 600.0
"""Seconds without a new image after which an association that stays open no longer holds a series."""
PATIENCE = 3600.0
"""Seconds that a series waits for images that were refused, or that an interrupted association did not bring."""


class Association(Protocol):
    """One is a thread, alive as long as it is open."""

    is_released: bool

    def is_alive(self) -> bool:
        """Whether it is open."""


@dataclass
class _Arrival:
    last: float  # when the last image came
    busy: float  # when one of its associations was last seen open
    broken: float = -math.inf  # when the last image of an association came that was not released
    mended: float = -math.inf  # when the first image of one came that was
    associations: dict[Association, tuple[float, float]] = field(default_factory=dict)  # first and last image of each


class Arrivals:
    """Who is sending which series.

    Args:
        quiet_time: Seconds that have to pass after the last image and after the end of its association.
        patience: See `PATIENCE`.
    """

    def __init__(self, quiet_time: float, patience: float = PATIENCE) -> None:
        self.quiet_time, self.patience = quiet_time, patience
        self._series: dict[str, _Arrival] = {}

    def note(self, series: str, association: Association) -> None:
        """An image of a series comes."""
        now = time.monotonic()
        arrival = self._series.setdefault(series, _Arrival(now, now))
        first, _ = arrival.associations.get(association, (now, now))
        arrival.associations[association] = (first, now)
        arrival.last = arrival.busy = now

    def is_complete(self, series: str, missing: int = 0) -> bool:
        """Whether a series may be closed now; ``missing`` counts its refused images."""
        arrival, now = self._arrival(series), time.monotonic()
        if arrival.associations and now - arrival.last < max(STALE, self.quiet_time):
            arrival.busy = now
        wait = max(self.patience, self.quiet_time) if missing or self.is_suspect(series) else self.quiet_time
        return now - max(arrival.last, arrival.busy) >= wait

    def is_suspect(self, series: str) -> bool:
        """Whether images may be missing: an association was interrupted, and none that began later was released."""
        arrival = self._arrival(series)
        return arrival.broken > arrival.mended

    def forget(self, series: str) -> None:
        """It was closed."""
        self._series.pop(series, None)

    def _arrival(self, series: str) -> _Arrival:
        now = time.monotonic()  # after a restart, the quiet begins anew
        arrival = self._series.setdefault(series, _Arrival(now, now, broken=now))
        for association, (first, last) in list(arrival.associations.items()):
            if association.is_alive():
                continue
            del arrival.associations[association]
            if association.is_released:
                arrival.mended = max(arrival.mended, first)
            else:
                arrival.broken = max(arrival.broken, last)
        return arrival
