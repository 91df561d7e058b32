"""Reading, computing and writing take turns in three threads, over stand-ins for scans."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adl_monai.errors import OutOfMemoryError, ScanFileError
from adl_monai.stages.outputs import Job
from adl_monai.stages.pipeline import Steps, run_steps
from adl_monai.stages.tally import Tally

Model = Callable[..., Path]
LONG = 60.0  # seconds that no step takes, unless it waits for one that never comes


def no_threads_of_ours() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("adl_monai")]


def settled(outcomes: list[Any]) -> Callable[[int, Callable[[], int]], None]:
    def settle(job: int, outcome: Callable[[], int]) -> None:
        outcomes.append((job, outcome()))

    return settle


def never(job: int) -> Any:
    raise AssertionError(f"job {job} ran whole")


class TestSteps:
    """The order of things, with steps that wait for one another instead of a clock."""

    def test_the_next_is_read_and_the_last_is_written_while_one_is_computed(self) -> None:
        read, written = ([threading.Event() for _ in range(4)] for _ in range(2))
        computing = [threading.Event() for _ in range(4)]

        def reading(job: int) -> int:
            read[job].set()
            return job

        def compute(case: int) -> int:
            computing[case].set()
            if case < 3:
                assert read[case + 1].wait(LONG), "nobody reads ahead"
            return case

        def write(case: int) -> int:
            if case < 3:
                assert computing[case + 1].wait(LONG), "the network waits for the writer"
            written[case].set()
            return -case

        outcomes: list[Any] = []
        run_steps(range(4), Steps(reading, compute, write, never, lambda job: False), settled(outcomes))
        assert outcomes == [(0, 0), (1, -1), (2, -2), (3, -3)]
        assert no_threads_of_ours()

    def test_never_more_than_three_are_alive_failures_included(self) -> None:
        class Scan:
            pass

        alive: weakref.WeakSet[Scan] = weakref.WeakSet()
        most = 0

        def read(job: Job) -> tuple[int, Scan]:
            nonlocal most
            scan = Scan()
            alive.add(scan)
            most = max(most, len(alive))
            index = int(job.source.name)
            if index % 5 == 1:
                raise ScanFileError(f"{job.source}: read")
            return index, scan

        def compute(case: tuple[int, Scan]) -> tuple[int, Scan]:
            if case[0] % 5 == 2:
                raise ScanFileError(f"{case[0]}: compute")
            return case

        def write(case: tuple[int, Scan]) -> int:
            if case[0] % 5 == 3:
                raise ScanFileError(f"{case[0]}: write")
            return case[0]

        jobs = [Job(Path(str(index)), Path("out")) for index in range(40)]
        tally = Tally(len(jobs), 0, None)
        run_steps(jobs, Steps(read, compute, write, never, lambda job: False), tally.settle)
        assert tally.results == [index for index in range(40) if index % 5 in (0, 4)]
        assert [str(error) for _, error in tally.failures[:3]] == ["1: read", "2: compute", "3: write"]
        assert most <= 3
        assert not alive

    def test_a_job_that_runs_whole_has_no_neighbour_and_keeps_its_place(self) -> None:
        busy: set[int] = set()
        outcomes: list[Any] = []

        def read(job: int) -> int:
            busy.add(job)
            return job

        def write(case: int) -> int:
            busy.discard(case)
            return case

        def whole(job: int) -> int:
            assert not busy, "another scan is in memory"
            return 100 + job

        steps = Steps(read, lambda case: case, write, whole, lambda job: job in (2, 3, 6))
        run_steps(range(7), steps, settled(outcomes))
        assert outcomes == [(0, 0), (1, 1), (2, 102), (3, 103), (4, 4), (5, 5), (6, 106)]

    def test_a_single_job_takes_no_thread(self) -> None:
        outcomes: list[Any] = []
        steps = Steps(never, never, never, lambda job: threading.current_thread(), lambda job: False)
        run_steps([0], steps, settled(outcomes))
        assert outcomes == [(0, threading.main_thread())]

    def test_what_finds_no_memory_beside_others_is_tried_by_itself(self) -> None:
        def compute(case: int) -> int:
            if case == 1:
                raise OutOfMemoryError("not enough memory")
            return case

        outcomes: list[Any] = []
        steps = Steps(lambda job: job, compute, lambda case: case, lambda job: 100 + job, lambda job: False)
        run_steps(range(3), steps, settled(outcomes))
        assert outcomes == [(0, 0), (2, 2), (1, 101)]

    @pytest.mark.parametrize("raised", [SystemExit(130), KeyError("a bug")])
    def test_what_ends_the_run_breaks_off_reader_and_writer(self, raised: BaseException) -> None:
        """As a signal's handler does, in the middle of a computation; the writer gets the time to tidy up."""
        writing, tidied, hold = threading.Event(), threading.Event(), threading.Event()

        def read(job: int) -> int:
            while job == 2:
                hold.wait(0.01)
            return job

        def compute(case: int) -> int:
            if case == 1:
                assert writing.wait(LONG)
                if isinstance(raised, SystemExit):
                    raise raised
            return case

        def write(case: int) -> int:
            writing.set()
            try:
                while isinstance(raised, SystemExit):
                    hold.wait(0.01)
            finally:
                tidied.set()
            return case

        def settle(job: int, outcome: Callable[[], int]) -> None:
            outcome()
            raise raised

        with pytest.raises(type(raised)):
            run_steps(range(4), Steps(read, compute, write, never, lambda job: False), settle)
        assert tidied.is_set()
        assert no_threads_of_ours()
