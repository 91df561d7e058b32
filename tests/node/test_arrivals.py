"""When a series is taken to be complete, by a clock that the tests turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from adl_monai.node.arrivals import STALE, Arrivals


class Clock:
    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def association() -> Iterator[threading.Thread]:
    thread = threading.Thread(target=(end := threading.Event()).wait)
    thread.end = end.set  # type: ignore[attr-defined]
    thread.start()
    yield thread
    end.set()


def finish(association: threading.Thread) -> None:
    association.end()  # type: ignore[attr-defined]
    association.join()


def test_quiet_counts_from_the_association_s_end(clock: Clock, association: threading.Thread) -> None:
    arrivals = Arrivals(10)
    arrivals.note("s", association)
    clock.now += 60
    assert not arrivals.is_complete("s"), "it is open"
    finish(association)
    clock.now += 9
    assert not arrivals.is_complete("s")
    clock.now += 1
    assert arrivals.is_complete("s")


def test_an_association_that_stays_open_does_not_hold_a_series_for_ever(
    clock: Clock, association: threading.Thread
) -> None:
    arrivals = Arrivals(10)
    arrivals.note("s", association)
    clock.now += STALE - 1
    assert not arrivals.is_complete("s")
    clock.now += 9
    assert not arrivals.is_complete("s")
    clock.now += 1
    assert arrivals.is_complete("s")


def test_a_series_with_refused_images_gets_more_time(clock: Clock, association: threading.Thread) -> None:
    arrivals = Arrivals(10, patience=100)
    arrivals.note("s", association)
    finish(association)
    clock.now += 99
    assert not arrivals.is_complete("s", missing=1)
    assert arrivals.is_complete("s", missing=0)
    clock.now += 1
    assert arrivals.is_complete("s", missing=1)


def test_after_a_restart_the_quiet_begins_anew(clock: Clock) -> None:
    arrivals = Arrivals(10)
    assert not arrivals.is_complete("s")
    clock.now += 10
    assert arrivals.is_complete("s")
    arrivals.forget("s")
    assert not arrivals.is_complete("s")
