"""Reading one box ahead and writing one behind, so that disks and processors work at the same time.

Each has one thread of its own and holds one box besides the caller's. What a thread raises comes out of the next call.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from adl_monai.data.raw_voxels import Box, lengths


class _OneThread(AbstractContextManager):
    """A thread with at most one call under way; leaving the ``with`` block waits for that call and ends the thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[Any] | None = None

    def __exit__(self, *raised: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def wait(self) -> Any:
        """The result of the call under way, or its error; None if there is none."""
        pending, self._pending = self._pending, None
        return None if pending is None else pending.result()


class ReadAhead(_OneThread):
    """Reads boxes, and meanwhile the box that will most likely be asked for next.

    That is the last one moved on along the last axis by as much as it lies behind the one before it; a wrong guess
    costs the reading of one box.

    Args:
        read: Reads a box.
        planes: Of the volume, along the last axis.
    """

    def __init__(self, read: Callable[[Box], Any], planes: int) -> None:
        super().__init__()
        self._read = read
        self._planes = planes
        self._last: Box | None = None
        self._guess: Box | None = None

    def __call__(self, box: Box) -> Any:
        """What ``read(box)`` gives."""
        ahead = self.wait()
        found = ahead if self._guess == box else None
        del ahead  # not held beside the box that is read instead
        if found is None:
            found = self._read(box)
        self._guess = self._next(box)
        self._last = box
        if self._guess is not None:
            self._pending = self._thread.submit(self._read, self._guess)
        return found

    def _next(self, box: Box) -> Box | None:
        rows, columns, planes = box
        if self._last is None or self._last[:2] != box[:2] or planes.stop == self._planes:
            return None
        step = planes.start - self._last[2].start
        # The first box has no margin before it: its step is shorter than the others', and tells nothing.
        if step <= 0 or lengths(self._last) != lengths(box):
            return None
        return rows, columns, slice(planes.start + step, min(planes.stop + step, self._planes))


class WriteBehind(_OneThread):
    """Writes what it is given in its own thread, in the order given, once what was given before is written.

    Before the block ends, `wait` tells whether the last writing went well.

    Args:
        write: Takes a box and what belongs there; the caller must not change that afterwards.
    """

    def __init__(self, write: Callable[[Box, Any], None]) -> None:
        super().__init__()
        self._write = write

    def __call__(self, box: Box, values: Any) -> None:
        """Have a box written; raises what the writing of the one before raised."""
        self.wait()
        self._pending = self._thread.submit(self._write, box, values)
