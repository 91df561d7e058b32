"""When a series is complete: DICOM has no word for it, so an association's end and some quiet have to do."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from threading import Thread

STALE = 600.0
"""Seconds without a new image after which an association that stays open no longer holds a series."""
PATIENCE = 3600.0
"""Seconds that a series waits for images that were refused, to be sent again."""


@dataclass
class _Arrival:
    last: float  # when the last image came
    busy: float  # when one of its associations was last seen open
    associations: set[Thread] = field(default_factory=set)


class Arrivals:
    """Who is sending which series.

    Args:
        quiet_time: Seconds that have to pass after the last image and after the end of its association.
        patience: See `PATIENCE`.
    """

    def __init__(self, quiet_time: float, patience: float = PATIENCE) -> None:
        self.quiet_time, self.patience = quiet_time, patience
        self._series: dict[str, _Arrival] = {}

    def note(self, series: str, association: Thread) -> None:
        """An image of a series comes, by an association (which is a thread: alive as long as it is open)."""
        arrival = self._arrival(series)
        arrival.associations.add(association)
        arrival.last = arrival.busy = time.monotonic()

    def is_complete(self, series: str, missing: int = 0) -> bool:
        """Whether a series may be closed now; ``missing`` counts its refused images."""
        arrival, now = self._arrival(series), time.monotonic()
        arrival.associations = {association for association in arrival.associations if association.is_alive()}
        if arrival.associations and now - arrival.last < max(STALE, self.quiet_time):
            arrival.busy = now
        wait = max(self.patience, self.quiet_time) if missing else self.quiet_time
        return now - max(arrival.last, arrival.busy) >= wait

    def forget(self, series: str) -> None:
        """It was closed."""
        self._series.pop(series, None)

    def _arrival(self, series: str) -> _Arrival:
        now = time.monotonic()  # after a restart, the quiet begins anew
        return self._series.setdefault(series, _Arrival(now, now))
