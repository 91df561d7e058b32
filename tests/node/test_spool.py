"""What the spool promises: names that say nothing, whole files, one owner, and nothing lost or half done."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from adl_monai.errors import OutputError, UsageError
from adl_monai.node.spool import RECORDS_KEPT, Spool, SpoolFullError


def put(spool: Spool, series: str, image: str, content: bytes = b"image") -> str:
    temporary = spool.temporary()
    temporary.write_bytes(content)
    return spool.store(spool.name(series), spool.name(image), temporary)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", 3, 0)


def again(spool: Spool) -> Spool:
    """As after a crash."""
    assert spool._held is not None
    os.close(spool._held)
    return Spool(spool.root, spool.limit, spool.reserve)


def test_names_are_stable_and_hide_the_uid(tmp_path: Path, spool: Spool) -> None:
    name = spool.name("1.2.840.1")
    assert len(name) == 24
    assert name != spool.name("1.2.840.2")
    assert again(spool).name("1.2.840.1") == name
    assert Spool(tmp_path / "other", 1, 0).name("1.2.840.1") != name, "keyed: not to be found by trying UIDs"
    assert spool.root.stat().st_mode & 0o077 == 0
    assert (spool.root / "key").stat().st_mode & 0o077 == 0


def test_the_same_image_counts_once_and_a_later_version_replaces_it(spool: Spool) -> None:
    assert put(spool, "1.1", "1.1.1") == "new"
    assert put(spool, "1.1", "1.1.1") == "same"
    assert put(spool, "1.1", "1.1.1", b"later") == "replaced"
    (path,) = (spool.root / "incoming").rglob("*.dcm")
    assert path.read_bytes() == b"later"
    assert not list((spool.root / "temporary").iterdir())


def test_a_series_goes_its_way_over_restarts(spool: Spool) -> None:
    put(spool, "1.1", "1.1.1")
    spool = again(spool)
    (series,) = spool.open_series()
    job = spool.close_series(series)
    spool = again(spool)
    assert [(job.number, len(job.images())) for job in spool.jobs()] == [(1, 1)]
    put(spool, "1.1", "1.1.2")
    assert spool.count() == 2
    second = spool.close_series(series)
    spool.fail(second, "no")
    assert (spool.root / "failed" / "000002" / "reason.txt").read_text() == "no\n"
    assert len(list((spool.root / "failed" / "000002" / "source").iterdir())) == 1
    spool.finish(job)
    assert spool.count() == 0
    spool = again(spool)
    put(spool, "1.1", "1.1.1")
    assert spool.close_series(series).number == 3, "numbers name one series for ever"


def test_the_limit_is_for_series_not_images(spool: Spool) -> None:
    put(spool, "1.1", "1.1.1")
    spool.close_series(spool.name("1.1"))
    put(spool, "1.2", "1.2.1")
    put(spool, "1.3", "1.3.1")
    with pytest.raises(SpoolFullError):
        put(spool, "1.4", "1.4.1")
    put(spool, "1.3", "1.3.2")
    assert spool.count() == 3


def test_refused_images_are_missing_until_they_come(spool: Spool) -> None:
    for series in ("1.1", "1.2"):
        put(spool, series, f"{series}.1")
        spool.refuse(spool.name(series), spool.name("1.1.2"))
    spool = again(spool)
    assert spool.missing(spool.name("1.1")) == spool.missing(spool.name("1.2")) == 1
    put(spool, "1.1", "1.1.2")
    assert spool.missing(spool.name("1.1")) == 0
    assert spool.missing(spool.name("1.2")) == 0, "it was of the other series, as is known now"
    spool.refuse(spool.name("1.1"), spool.name("1.1.2"))
    assert spool.missing(spool.name("1.1")) == 0, "a version of it is there"


def test_what_a_killed_process_left_is_cleared_away(spool: Spool) -> None:
    put(spool, "1.1", "1.1.1")
    job = spool.close_series(spool.name("1.1"))
    spool.temporary().write_bytes(b"half an image")
    (job.path / ".0123").mkdir()
    (spool.root / "jobs" / "000009").mkdir()
    (spool.root / "temporary" / "000005" / "source").mkdir(parents=True)
    spool = again(spool)
    assert not list((spool.root / "temporary").iterdir())
    assert [path.name for path in (spool.root / "jobs").iterdir()] == ["000001"]
    assert sorted(path.name for path in job.path.iterdir()) == ["note.json", "source"]


def test_records_are_kept_for_a_while(spool: Spool) -> None:
    for name, age in (("old", RECORDS_KEPT + 60), ("young", RECORDS_KEPT - 3600)):
        spool.record_path(name).write_text("{}")
        os.utime(spool.record_path(name), (time.time() - age,) * 2)
    spool = again(spool)
    assert [path.stem for path in (spool.root / "records").iterdir()] == ["young"]


def test_an_orderly_end_leaves_nothing_half_removed(spool: Spool) -> None:
    (spool.root / "temporary" / "000005" / "source").mkdir(parents=True)
    spool.release()
    assert not list((spool.root / "temporary").iterdir())


def test_one_process_holds_it_on_windows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locking(file: int, mode: int, count: int) -> None:
        """As the C library's: refuses a file that is locked with this error."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.setattr("adl_monai.node.spool.sys", SimpleNamespace(platform="win32"))
    monkeypatch.setitem(sys.modules, "fcntl", None)
    first = Spool(tmp_path / "spool", 3, 0)
    with pytest.raises(UsageError, match="in use by another listener"):
        Spool(tmp_path / "spool", 3, 0)
    first.release()
    Spool(tmp_path / "spool", 3, 0).release()


def test_one_process_holds_it(spool: Spool) -> None:
    with pytest.raises(UsageError, match="in use by another listener"):
        Spool(spool.root, 1, 0)


def test_a_spool_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--spool"):
        Spool(tmp_path / "file" / "spool", 1, 0)


def test_room(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(spool.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    spool.reserve = 700
    assert spool.has_room(100)
    assert not spool.has_room(101)
