"""When something happened: a node runs for weeks, and its lines are compared with those of others."""

from __future__ import annotations

import logging
from datetime import datetime


def stamp(seconds: float | None = None) -> str:
    """The local time with its offset from UTC, ISO 8601; of now, or of so many seconds since the epoch."""
    moment = datetime.now() if seconds is None else datetime.fromtimestamp(seconds)
    return moment.astimezone().isoformat(timespec="seconds")


class StampedFormatter(logging.Formatter):
    """Log lines with their time."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """See `stamp`."""
        return stamp(record.created)
