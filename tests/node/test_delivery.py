"""Derived series leave the spool only when they have arrived elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event, Thread

import pydicom
import pytest
from pydicom.uid import MRImageStorage

from adl_monai.node import delivery as module
from adl_monai.node.delivery import Delivery
from adl_monai.node.job import Job
from adl_monai.node.network import Peer
from adl_monai.node.spool import Spool
from tests.data.conftest import build_series
from tests.dicom_network import archive, wait_until
from tests.node.test_spool import put

STOP = Event()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", 10, 0)


@pytest.fixture
def job(spool: Spool) -> Job:
    put(spool, "1.1", "1.1.1")
    job = spool.close_series(spool.name("1.1"))
    build_series(job.derived, [0, 1, 2])
    return job


def test_a_series_stays_until_the_peer_took_every_image(
    spool: Spool, job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[str] = []
    with archive() as peer:
        delivery = Delivery(spool, "ADL", Peer.parse(peer.address), None, lines.append)
        for answer in (0, 0xA700):
            peer.answers.put(answer)
        assert not delivery.try_to_deliver(job, STOP)
        assert "did not accept image 2 of 3 (status 0xA700)" in caplog.text
        assert len(list(job.derived.iterdir())) == 3
        for answer in (0x0111, 0xB000):
            peer.answers.put(answer)
        assert delivery.try_to_deliver(job, STOP), "duplicates and coercions are accepted"
        assert peer.syntaxes == {"1.2.840.10008.1.2.1"}
        assert peer.callers == {"ADL"}
    assert spool.count() == 0
    assert not job.path.exists()
    assert "sent to ARCHIVE" in lines[-1]


def test_an_absent_peer_is_tried_again_more_and_more_rarely(
    spool: Spool, job: Job, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT", 0.1)
    with archive("OTHER") as peer:
        wrong = Delivery(spool, "ADL", Peer("127.0.0.1", peer.port, "ARCHIVE"), None, print)
        assert not wrong.try_to_deliver(job, STOP)
        assert "rejected the association" in caplog.text
    delivery, stop = Delivery(spool, "ADL", Peer("127.0.0.1", peer.port, "ARCHIVE"), None, print), Event()
    thread = Thread(target=delivery.run, args=(stop,))
    thread.start()
    wait_until(lambda: caplog.text.count("cannot be reached") >= 3)
    assert job.derived.is_dir()
    assert delivery._tries[job.number][1] - time.monotonic() > 0.2, "doubled twice"
    with archive() as peer:
        delivery.peer = Peer.parse(peer.address)
        wait_until(lambda: spool.count() == 0)
        assert len(peer.images) == 3
    stop.set()
    thread.join()


@pytest.mark.parametrize("echo", [False, True])
def test_a_kind_of_image_that_the_peer_does_not_take_blocks_nobody(
    spool: Spool, job: Job, caplog: pytest.LogCaptureFixture, echo: bool
) -> None:
    for path in job.derived.iterdir():
        image = pydicom.dcmread(path)
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
        image.save_as(path)
    spool.record_path(job.note["series"]).write_text("{}")
    put(spool, "1.2", "1.2.1")
    other = spool.close_series(spool.name("1.2"))
    build_series(other.derived, [0, 1])
    with archive(echo=echo) as peer:
        delivery = Delivery(spool, "ADL", Peer.parse(peer.address), None, print)
        for _ in range(module.REFUSALS):
            assert job.derived.is_dir()
            assert not delivery.try_to_deliver(job, STOP)
        assert delivery.try_to_deliver(other, STOP)
    assert "does not take MR Image Storage" in caplog.text
    failed = spool.root / "failed" / "000001"
    assert "does not take MR Image Storage" in (failed / "reason.txt").read_text()
    assert len(list((failed / "derived").iterdir())) == 3
    assert spool.count() == 0, "it takes no place any more"
    assert not list((spool.root / "records").iterdir()), "if it is sent again, it is not taken for done"


@pytest.mark.parametrize(("answer", "is_final"), [(0xA900, True), (0xC123, True), (0x0122, True), (0xA700, False)])
def test_only_a_refusal_for_good_is_given_up(spool: Spool, job: Job, answer: int, is_final: bool) -> None:
    with archive() as peer:
        delivery = Delivery(spool, "ADL", Peer("127.0.0.1", 1, "NOBODY"), None, print)
        for _ in range(module.REFUSALS):
            assert not delivery.try_to_deliver(job, STOP)
        delivery.peer = Peer.parse(peer.address)
        for _ in range(module.REFUSALS):
            assert job.derived.is_dir()
            peer.answers.put(answer)
            assert not delivery.try_to_deliver(job, STOP)
    assert job.derived.is_dir() is not is_final
    assert (spool.root / "failed" / "000001").is_dir() is is_final


def test_a_spool_that_cannot_be_used_for_a_while(
    spool: Spool, job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.1)
    (spool.root / "jobs").rename(spool.root / "away")
    with archive() as peer:
        delivery, stop = Delivery(spool, "ADL", Peer.parse(peer.address), None, print), Event()
        thread = Thread(target=delivery.run, args=(stop,))
        thread.start()
        wait_until(lambda: "the spool cannot be used" in caplog.text)
        (spool.root / "away").rename(spool.root / "jobs")
        wait_until(lambda: len(peer.images) == 3)
        stop.set()
        thread.join()


def test_a_folder_is_written_once_whatever_happens_in_between(spool: Spool, job: Job, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "series_000001").mkdir(parents=True)  # of another spool
    delivery = Delivery(spool, "ADL", Peer("127.0.0.1", 1, "NOBODY"), out, print)
    for _ in range(2):
        assert not delivery.try_to_deliver(job, STOP)
        assert sorted(path.name for path in out.iterdir()) == ["series_000001", "series_000001_2"]
    assert len(list((out / "series_000001_2").iterdir())) == 3
    delivery.peer = None
    assert delivery.try_to_deliver(job, STOP)
    assert len(list(out.iterdir())) == 2
    assert spool.count() == 0
