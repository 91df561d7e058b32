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


class Association(threading.Thread):
    """Open until it is ended."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.is_released = False
        self.over = threading.Event()
        self.start()

    def run(self) -> None:
        self.over.wait()

    def end(self, is_released: bool = True) -> None:
        self.is_released = is_released
        self.over.set()
        self.join()


@pytest.fixture
def association() -> Iterator[Association]:
    association = Association()
    yield association
    association.end()


def test_quiet_counts_from_the_association_s_end(clock: Clock, association: Association) -> None:
    arrivals = Arrivals(10)
    arrivals.note("s", association)
    clock.now += 60
    assert not arrivals.is_complete("s"), "it is open"
    association.end()
    clock.now += 9
    assert not arrivals.is_complete("s")
    clock.now += 1
    assert arrivals.is_complete("s")


def test_an_association_that_stays_open_does_not_hold_a_series_for_ever(clock: Clock, association: Association) -> None:
    arrivals = Arrivals(10)
    arrivals.note("s", association)
    clock.now += STALE - 1
    assert not arrivals.is_complete("s")
    clock.now += 9
    assert not arrivals.is_complete("s")
    clock.now += 1
    assert arrivals.is_complete("s")


def test_a_series_with_refused_images_gets_more_time(clock: Clock, association: Association) -> None:
    arrivals = Arrivals(10, patience=100)
    arrivals.note("s", association)
    association.end()
    clock.now += 99
    assert not arrivals.is_complete("s", missing=1)
    assert arrivals.is_complete("s", missing=0)
    clock.now += 1
    assert arrivals.is_complete("s", missing=1)


def test_after_a_restart_a_series_gets_more_time_and_is_suspect(clock: Clock, association: Association) -> None:
    arrivals = Arrivals(10, patience=100)
    assert not arrivals.is_complete("s")
    clock.now += 99
    assert not arrivals.is_complete("s")
    clock.now += 1
    assert arrivals.is_complete("s")
    assert arrivals.is_suspect("s")
    arrivals.forget("s")
    assert not arrivals.is_complete("s")
    clock.now += 1
    arrivals.note("s", association)
    association.end()
    assert not arrivals.is_suspect("s")
    clock.now += 10
    assert arrivals.is_complete("s"), "what was missing came"


def test_an_interrupted_association_leaves_a_series_suspect(clock: Clock) -> None:
    arrivals, broken, beside, later = Arrivals(10, patience=100), Association(), Association(), Association()
    for association in (broken, beside, broken):
        arrivals.note("s", association)
        clock.now += 1
    broken.end(is_released=False)
    arrivals.note("s", beside)
    beside.end()
    clock.now += 99
    assert arrivals.is_suspect("s"), "the one beside it did not bring again what it lacks"
    assert not arrivals.is_complete("s")
    arrivals.note("s", later)
    assert arrivals.is_suspect("s"), "it may be interrupted, too"
    later.end()
    assert not arrivals.is_suspect("s")
    clock.now += 10
    assert arrivals.is_complete("s")


def test_who_ended_how_is_asked_late(clock: Clock) -> None:
    """The worker is busy for minutes, then finds both at an end."""
    arrivals = Arrivals(10, patience=100)
    for is_released in (False, True):
        association = Association()
        arrivals.note("s", association)
        clock.now += 1
        association.end(is_released)
    assert not arrivals.is_suspect("s")
