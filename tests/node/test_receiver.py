"""The door: who may call, what is refused with which status, and that success means safe on the disk."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import MPEG2MPML, JPEG2000Lossless, RLELossless

from adl_monai.data.io import read_volume, write_volume
from adl_monai.errors import UsageError
from adl_monai.node import receiver as module
from adl_monai.node.arrivals import STALE, Arrivals
from adl_monai.node.receiver import Receiver, transfer_syntaxes
from adl_monai.node.spool import Spool
from tests.data.conftest import build_series
from tests.dicom_network import calling, send, store, wait_until

Door = Callable[..., Any]


@contextmanager
def open_door(spool: Spool, allow: tuple[str, ...] = (), arrivals: Arrivals | None = None) -> Iterator[int]:
    receiver = Receiver(spool, arrivals or Arrivals(10), "ADL", allow, ("127.0.0.1", 0))
    try:
        yield receiver.address[1]
    finally:
        receiver.close()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", 2, 0)


@pytest.fixture
def port(spool: Spool) -> Iterator[int]:
    with open_door(spool) as port:
        yield port


def stored(spool: Spool) -> list[Path]:
    return sorted((spool.root / "incoming").rglob("*.dcm"))


def test_images_lie_in_the_spool_as_they_were_sent(tmp_path: Path, spool: Spool, port: int) -> None:
    paths = build_series(tmp_path / "CT", [0, 1, 2])
    assert send(port, paths) == [0, 0, 0]
    assert send(port, paths) == [0, 0, 0]
    sent = {pydicom.dcmread(path).PixelData for path in paths}
    assert {pydicom.dcmread(path).PixelData for path in stored(spool)} == sent
    assert len(stored(spool)) == 3
    assert not list((spool.root / "temporary").iterdir())


def test_echo_and_who_may_call(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    with open_door(spool, allow=("CT1", "MR2")) as port:
        with calling(port, caller="MR2") as association:
            assert association.send_c_echo().Status == 0
        with calling(port, caller="XX") as association:
            assert association.is_rejected
        with calling(port, caller="CT1", called="PACS") as association:
            assert association.is_rejected
    assert "calls 'ADL' as 'XX'" in caplog.text
    assert "calls 'PACS' as 'CT1'" in caplog.text
    with open_door(spool) as port, calling(port, caller="ANYONE") as association:
        assert association.is_established


def test_a_busy_port_is_a_users_error(spool: Spool, port: int) -> None:
    with pytest.raises(UsageError, match="choose another --port"):
        Receiver(spool, Arrivals(10), "ADL", (), ("127.0.0.1", port))


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "JPEG-lossy.dcm", "MR_small_bigendian.dcm", "image_dfl.dcm",
        "eCT_Supplemental.dcm", "dicomdirtests/77654033/CR1/6154",
        "dicomdirtests/98892003/MR1/4919",
    ],
)  # fmt: skip
def test_images_of_many_kinds_are_taken_as_they_are(spool: Spool, port: int, name: str) -> None:
    source = Path(str(get_testdata_file("CT_small.dcm"))).parent / name
    source = source if source.exists() else Path(str(get_testdata_file(name)))
    dataset = pydicom.dcmread(source)
    syntax = dataset.file_meta.TransferSyntaxUID
    assert send(port, [source], syntax=syntax, kind=dataset.SOPClassUID) == [0]
    (path,) = stored(spool)
    kept = pydicom.dcmread(path)
    assert kept.file_meta.TransferSyntaxUID == syntax
    assert kept.PixelData == dataset.PixelData


def test_kinds_that_hold_no_picture_are_not_offered(port: int) -> None:
    with calling(port, kind="1.2.840.10008.5.1.4.1.1.481.2") as association:  # RT Dose
        assert [str(context.abstract_syntax) for context in association.accepted_contexts] == ["1.2.840.10008.1.1"]


def test_syntaxes_that_nothing_here_decodes_are_not_offered() -> None:
    assert MPEG2MPML not in transfer_syntaxes()
    assert {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", RLELossless, JPEG2000Lossless} <= set(transfer_syntaxes())


def test_a_full_spool_refuses_a_series_whole(
    tmp_path: Path, spool: Spool, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    spool.limit = 1
    first = build_series(tmp_path / "1", [0, 1], SeriesInstanceUID="1.2.1")
    second = build_series(tmp_path / "2", [0, 1], SeriesInstanceUID="1.2.2")
    assert send(port, first[:1]) == [0]
    with calling(port) as association:
        assert store(association, second[0]) == 0xA700
        assert store(association, first[1]) == 0, "a series that was begun goes on"
        spool.limit = 2
        assert store(association, second[1]) == 0xA700, "half of it would look like a whole one"
    assert len(spool.open_series()) == 1
    assert send(port, second) == [0, 0]
    assert [spool.missing(series) for series in spool.open_series()] == [0, 0]
    assert "1 series are waiting" in caplog.text


def test_a_series_split_over_associations_is_not_taken_by_half(tmp_path: Path, spool: Spool, port: int) -> None:
    spool.limit = 1
    first = build_series(tmp_path / "1", [0], SeriesInstanceUID="1.2.1")
    second = build_series(tmp_path / "2", [0, 1, 2], SeriesInstanceUID="1.2.2")
    assert send(port, first) == [0]
    assert send(port, second[:1]) == [0xA700]
    spool.limit = 2
    assert send(port, second[1:]) == [0, 0]
    assert spool.missing(spool.name("1.2.2")) == 1
    assert send(port, second[:1]) == [0]
    assert spool.missing(spool.name("1.2.2")) == 0


def test_a_full_disk(tmp_path: Path, spool: Spool, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = build_series(tmp_path / "CT", [0, 1, 2])
    usage = shutil.disk_usage(tmp_path)
    with calling(port) as association:
        for number, path in enumerate(paths):  # the first and the last are refused
            with monkeypatch.context() as patch:
                if number != 1:
                    patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
                assert store(association, path) == (0 if number == 1 else 0xA700)
    (series,) = spool.open_series()
    assert spool.missing(series) == 2, "the series is known to be incomplete"
    assert send(port, paths) == [0, 0, 0]
    assert spool.missing(series) == 0


def test_a_write_error_is_no_success(
    tmp_path: Path, spool: Spool, port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = build_series(tmp_path / "CT", [0])

    def fail(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adl_monai.node.receiver.os.fsync", fail)
    assert send(port, paths) == [0xA700]
    monkeypatch.undo()
    assert stored(spool) == []
    assert not list((spool.root / "temporary").iterdir())
    assert "No space left" in caplog.text


def test_bad_images_are_refused_without_naming_anyone(
    tmp_path: Path, spool: Spool, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    good, *rest = build_series(tmp_path / "CT", [0, 1, 2, 3], SeriesInstanceUID="1.2.777")
    other = pydicom.dcmread(rest[0])
    other.file_meta.MediaStorageSOPInstanceUID = "1.2.3.999"  # what is announced
    other.save_as(rest[0])
    no_series = pydicom.dcmread(rest[1])
    del no_series.SeriesInstanceUID
    no_series.save_as(rest[1])
    whole = rest[2].read_bytes()
    damaged = whole.index(b"CS") + 2
    rest[2].write_bytes(whole[:damaged] + b"\xff\xff" + whole[damaged + 2 :])
    with calling(port) as association:
        assert store(association, good) == 0
        assert [store(association, path) for path in rest[:2]] == [0xA900, 0xA900]
        assert store(association, rest[2]) in (0xA900, 0xC000)
    assert len(stored(spool)) == 1
    assert spool.missing(spool.open_series()[0]) == 3, "one of them may be a slice of this series"
    assert caplog.text.count("an image was refused") == 3
    assert "SECRET" not in caplog.text
    assert "1.2.777" not in caplog.text


def test_a_silent_association_is_ended_only_when_it_counts_as_stale() -> None:
    assert 0.9 * STALE <= module._IDLE < STALE


@pytest.mark.parametrize("how", ["aborted", "cut", "silent"])
def test_an_association_without_a_release_leaves_its_series_incomplete(
    tmp_path: Path, spool: Spool, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if how == "silent":
        monkeypatch.setattr(module, "_IDLE", 1.0)
    series, arrivals = spool.name("1.2.1"), Arrivals(0, patience=1e9)
    paths = build_series(tmp_path / "CT", range(4), SeriesInstanceUID="1.2.1")
    with open_door(spool, arrivals=arrivals) as port:
        with calling(port) as association:
            assert [store(association, path) for path in paths[:2]] == [0, 0]
            if how == "aborted":
                association.abort()
            elif how == "cut":
                association.dul.socket.close()
            wait_until(lambda: not any("AcceptorThread" in thread.name for thread in threading.enumerate()))
        assert not arrivals.is_complete(series), "half of it would be delivered as the whole"
        assert arrivals.is_suspect(series)
        wait_until(lambda: "1 series wait up to" in caplog.text)
        assert send(port, paths[2:]) == [0, 0]
        wait_until(lambda: arrivals.is_complete(series))
        assert not arrivals.is_suspect(series)


def test_a_refused_series_is_one_line_and_a_count(
    tmp_path: Path, spool: Spool, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    spool.limit = 0
    paths = build_series(tmp_path / "CT", range(20))
    for _ in range(2):
        caplog.clear()
        assert send(port, paths) == [0xA700] * 20
        wait_until(lambda: "20 times in this association: an image was refused" in caplog.text)
        assert len(caplog.records) == 2


def test_our_own_results_are_not_taken(tmp_path: Path, spool: Spool, port: int) -> None:
    source = build_series(tmp_path / "CT", [0, 1])[0].parent
    volume = read_volume(source)
    write_volume(tmp_path / "derived", volume.array, like=source, affine=volume.affine)
    with calling(port) as association:
        assert store(association, source / "000.dcm") == 0
        assert store(association, tmp_path / "derived" / "IM_0001.dcm") == 0xA900, "or two nodes play ping-pong"
    (series,) = spool.open_series()
    assert spool.missing(series) == 0


def test_pynetdicom_keeps_silent(tmp_path: Path, port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        send(port, build_series(tmp_path / "CT", [0]))
    assert not [record for record in caplog.records if record.name.startswith("pynetdicom")]
