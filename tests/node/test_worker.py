"""From a closed series to a derived one, or to ``failed``; and series that come again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from adl_monai.errors import OutputError, SeriesGeometryError
from adl_monai.node.arrivals import Arrivals
from adl_monai.node.job import Job
from adl_monai.node.spool import Spool
from adl_monai.node.worker import KILLS, Worker
from tests.node.test_spool import put


class Released:
    """An association that is over."""

    is_released = True

    def is_alive(self) -> bool:
        return False


class Bench:
    """A worker whose denoiser copies; ``error`` is raised instead."""

    def __init__(self, root: Path, recipe: str = "copy") -> None:
        self.spool = Spool(root, 10, 0)
        self.error: BaseException | None = None
        self.done: list[int] = []
        self.lines: list[str] = []
        self.worker = Worker(self.spool, Arrivals(0), self.denoise, recipe, self.lines.append)

    def denoise(self, source: Path, derived: Path) -> int:
        if self.error is not None:
            raise self.error
        shutil.copytree(source, derived)
        self.done.append(len(list(source.iterdir())))
        return 0

    def receive(self, *images: str, content: bytes = b"image") -> None:
        for image in images:
            put(self.spool, "1.1", image, content)
        self.worker.arrivals.note(self.spool.name("1.1"), Released())
        self.worker.step()

    def deliver(self) -> None:
        for job in self.spool.jobs():
            self.spool.finish(job)

    def reason(self, number: int) -> str:
        return (self.spool.root / "failed" / f"{number:06d}" / "reason.txt").read_text()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "spool")


def test_a_series_is_denoised_once(bench: Bench) -> None:
    bench.receive("1", "2")
    assert bench.done == [2]
    assert bench.spool.jobs()[0].derived.is_dir()
    bench.receive("1", "2")
    assert bench.done == [2], "the first waits for its delivery"
    bench.deliver()
    bench.receive("2")
    bench.receive("1", "2")
    assert bench.done == [2]
    assert bench.spool.count() == 0
    assert "dropped" in bench.lines[-1]


def test_a_series_that_grew_or_changed_is_denoised_anew(bench: Bench, tmp_path: Path) -> None:
    bench.receive("1", "2")
    bench.receive("1", "2", "3")
    bench.receive("1", "2", "3", content=b"corrected")
    assert bench.done == [2, 3, 3]
    bench.deliver()
    bench.spool.release()
    other = Bench(bench.spool.root, "another model")
    other.receive("1", "2", "3", content=b"corrected")
    assert other.done == [3]


def test_stragglers_are_kept_aside(bench: Bench) -> None:
    bench.receive("1", "2")
    bench.receive("3")
    assert bench.done == [2]
    assert "Send the whole series again" in bench.reason(2)
    assert len(list((bench.spool.root / "failed" / "000002" / "source").iterdir())) == 1


def test_a_bad_series_is_kept_aside_with_a_reason(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    source = bench.spool.root / "jobs" / "000001" / "source"
    bench.error = SeriesGeometryError(f"{source}/abc.dcm and def.dcm differ.")
    bench.receive("1", "2")
    assert bench.reason(1).startswith(
        "abc.dcm and def.dcm differ. At this node: send each volume as a series of its own"
    )
    assert "failed/000001" in caplog.text
    bench.error = ValueError("SECRET^NAME")
    bench.receive("1", "2")
    assert bench.reason(2).startswith("unexpected ValueError at test_worker.py")
    assert "SECRET" not in caplog.text
    bench.error = None
    bench.receive("1", "2")
    assert bench.done == [2], "what failed does not count as denoised"


def test_a_series_of_which_images_were_refused_is_not_denoised(bench: Bench) -> None:
    put(bench.spool, "1.1", "1")
    bench.spool.refuse(bench.spool.name("1.1"), bench.spool.name("2"))
    bench.worker.arrivals.patience = 0
    bench.worker.step()
    assert bench.done == []
    assert bench.reason(1).startswith("1 images were refused")


def test_a_series_that_was_interrupted_is_not_denoised_by_half(bench: Bench) -> None:
    put(bench.spool, "1.1", "1")  # by a process that was killed
    bench.worker.step()
    assert bench.spool.open_series(), "it waits for the rest"
    bench.worker.arrivals.patience = 0
    bench.worker.step()
    assert bench.done == []
    assert "this program ended before the series was complete" in bench.reason(1)
    bench.receive("2")
    assert bench.done == []
    assert "these images came after others" in bench.reason(2), "nor is the other half"
    bench.receive("1", "2")
    assert bench.done == [2]
    put(bench.spool, "1.1", "2")
    bench.worker.step()
    assert bench.reason(4)
    bench.deliver()
    bench.receive("1", "2")
    assert bench.done == [2], "it is known still that the whole was denoised"


def test_passing_faults_are_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.error = OutputError("x could not be written")
    bench.error.__cause__ = OSError(28, "No space left on device")
    bench.receive("1")
    assert "tried again" in caplog.text
    bench.error = None
    bench.worker.step()
    assert bench.done == [], "not at once"
    monkeypatch.setattr("adl_monai.node.worker.time.monotonic", lambda: 1e12)
    bench.worker.step()
    assert bench.done == [1]


def test_a_series_that_kills_the_process_is_given_up(bench: Bench) -> None:
    put(bench.spool, "1.1", "1")
    job: Job = bench.spool.close_series(bench.spool.name("1.1"))
    bench.error = SystemExit(143)
    with pytest.raises(SystemExit):
        bench.worker.step()
    assert job.note["kills"] == 0, "a signal's orderly end is no kill"
    job.add_note(kills=KILLS)
    bench.worker.step()
    assert "killed 3 times" in bench.reason(1)
    assert bench.done == []
