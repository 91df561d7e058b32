"""Many scans in turn: while the network works on one, the next is read and the one before is written."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

from adl_monai.errors import OutOfMemoryError

Job = TypeVar("Job")
Case = TypeVar("Case")
Result = TypeVar("Result")
Outcome = Callable[[], Result]

AT_ONCE = 3
"""Jobs in memory at the same time, at most: one read, one computed, one written."""

_GOODBYE = 5.0  # seconds that a reader, which leaves nothing behind, may take to end


@dataclass(frozen=True)
class Steps(Generic[Job, Case, Result]):
    """How one job is done.

    Args:
        read: First, in a thread of its own.
        compute: Then, in the caller's thread.
        write: Last, in a third thread.
        whole: All three in one, in the caller's thread.
        runs_whole: Whether a job must be done by ``whole``, with no other scan in memory.
    """

    read: Callable[[Job], Case]
    compute: Callable[[Case], Case]
    write: Callable[[Case], Result]
    whole: Callable[[Job], Result]
    runs_whole: Callable[[Job], bool]


def run_steps(
    jobs: Sequence[Job], steps: Steps[Job, Case, Result], settle: Callable[[Job, Outcome[Result]], None]
) -> None:
    """Do jobs with at most three of them in memory: one being read or waiting, one computed, one being written.

    A single job is done in the caller's thread alone. A job for which memory ran out is tried once more at the end,
    with no other beside it.

    Args:
        jobs: In the order in which they are settled.
        steps: What to do with each.
        settle: Called once for each job, in the caller's thread, with the job and a function that returns its result
            or raises what went wrong. What it raises ends the run.

    Raises:
        BaseException: What ``settle``, or a signal's handler, raises. The threads have ended then: a write that was
            under way was broken off by SystemExit, for the writer to remove what it began.
    """
    alone = [len(jobs) == 1 or steps.runs_whole(job) for job in jobs]
    if all(alone):
        for job in jobs:
            settle(job, partial(steps.whole, job))
        return
    again: list[Job] = []
    ahead: Future[Case] | None = None
    behind: tuple[Job, Future[Result]] | None = None
    reader, writer = _Lane("reader"), _Lane("writer")

    def finish() -> None:
        nonlocal behind
        if behind is None:
            return
        (job, written), behind = behind, None
        if isinstance(written.exception(), OutOfMemoryError):  # waits for it
            again.append(job)
        else:
            settle(job, written.result)

    # Threads share the filters of warnings: those that a reader sets around a library would be lifted, or left in
    # place, by a writer's.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for index, job in enumerate(jobs):
                if alone[index]:
                    finish()
                    settle(job, partial(steps.whole, job))
                    continue
                reading = reader.start(steps.read, job) if ahead is None else ahead
                failure = reading.exception()  # waits for it
                case = reading.result() if failure is None else None
                more = index + 1 < len(jobs) and not alone[index + 1]
                del reading  # holds the case
                ahead = reader.start(steps.read, jobs[index + 1]) if more else None
                if case is not None:
                    try:
                        case = steps.compute(case)
                    except Exception as error:
                        case, failure = None, error
                finish()
                behind = (job, _failed(failure) if case is None else writer.start(steps.write, case))
                case = failure = None
            finish()
        finally:
            for lane in (reader, writer):
                lane.stop()
            reader.join(_GOODBYE)
            writer.join()
        for job in again:
            settle(job, partial(steps.whole, job))


class _Lane:
    """A thread that does one thing after another, and keeps nothing of what it has done."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        # A daemon: a reader that hangs, on a network's disk perhaps, must not keep the process from ending.
        self._thread = Thread(target=self._run, name=f"adl_monai {name}", daemon=True)
        self._busy = False
        self._thread.start()

    def start(self, work: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Do this; the future holds what it returns or raises. What was begun before must be done."""
        future: Future[Result] = Future()
        self._busy = True
        self._queue.put((future, work, arguments))
        return future

    def stop(self) -> None:
        """Let the thread end; work that is under way is broken off by SystemExit, as by a signal in the main thread.

        A call into the system or into C is not broken off, but what follows it.
        """
        if self._busy:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(SystemExit)
            )
        self._queue.put(None)

    def join(self, seconds: float | None = None) -> None:
        """Wait until the thread has ended, or so many seconds."""
        self._thread.join(seconds)

    def _run(self) -> None:
        with suppress(SystemExit):  # from `stop`, between two pieces of work
            while (item := self._queue.get()) is not None:
                future, work, arguments = item
                result = failure = None
                try:
                    result = work(*arguments)
                except BaseException as error:
                    failure = error
                del item, work, arguments  # before anyone can take the room they had
                self._busy = False
                if failure is None:
                    future.set_result(result)
                else:
                    future.set_exception(failure)
                del future, result, failure


def _failed(failure: BaseException | None) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(failure)
    return future
