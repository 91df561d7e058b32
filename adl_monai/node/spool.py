"""The spool: what was accepted lies on the disk, under names that say nothing, until it has been handed on.

``incoming/<series>/<image>.dcm`` series that are still arriving; ``<image>.refused`` stands for one that was refused
``jobs/<number>/``               series that are closed: to be denoised, or denoised and to be delivered
``failed/<number>/``             series that cannot be denoised or delivered, each with ``reason.txt``
``records/<series>.json``        which images were denoised already, by SHA-256, or came without the rest, for 30 days

Every step is a rename within one file system, so that a process that is killed leaves one state or the other.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import shutil
import sys
import threading
import time
from pathlib import Path

from adl_monai.data.output import remove, sync
from adl_monai.errors import OutputError, UsageError
from adl_monai.files import replacing
from adl_monai.node.job import Job

RECORDS_KEPT = 30 * 86400  # seconds
_FOLDERS = ("incoming", "jobs", "failed", "records", "temporary")


class SpoolFullError(Exception):
    """No place for another series now."""


class Spool:
    """A folder that one process holds.

    Args:
        root: The folder; made if missing, readable by its owner alone.
        limit: How many series may wait in it, arriving ones included.
        reserve: Bytes of the disk that are to stay free.

    Raises:
        UsageError: If another process holds it.
        OutputError: If it cannot be written.
    """

    def __init__(self, root: Path, limit: int, reserve: int) -> None:
        self.root, self.limit, self.reserve = root.resolve(), limit, reserve
        self.lock = threading.RLock()
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._held: int | None = _hold(self.root)
            for name in _FOLDERS:
                (self.root / name).mkdir(mode=0o700, exist_ok=True)
            self._key = self._read_key()
            self._tidy()
        except OSError as error:
            raise OutputError(
                f"the spool {root} cannot be used ({error.strerror or error}); name a writable folder with --spool."
            ) from error

    def name(self, uid: str) -> str:
        """The name that a UID has in this spool: a keyed hash, so that the UID cannot be found by trying."""
        return hmac.new(self._key, uid.encode(), "sha256").hexdigest()[:24]

    def has_room(self, size: int) -> bool:
        """Whether the disk takes so many more bytes, and their denoised copies."""
        return shutil.disk_usage(self.root).free >= self.reserve + 3 * size

    def temporary(self) -> Path:
        """A new name for a file that is not accepted yet."""
        return self.root / "temporary" / f"{secrets.token_hex(8)}.dcm"

    def store(self, series: str, image: str, temporary: Path) -> str:
        """Take in a file that is on the disk already; when this returns, it will survive a crash.

        Args:
            series: The `name` of the series.
            image: The `name` of the image.
            temporary: The file; it is moved or removed.

        Returns:
            ``new``, ``same`` (it was there already) or ``replaced`` (another version was).

        Raises:
            SpoolFullError: If it would open another series and the limit is reached.
        """
        with self.lock:
            folder = self.root / "incoming" / series
            if not folder.is_dir():
                if self.count() >= self.limit:
                    raise SpoolFullError
                folder.mkdir(mode=0o700)
                sync(folder.parent)
            target, found = folder / f"{image}.dcm", "new"
            if target.exists():
                found = "same" if target.read_bytes() == temporary.read_bytes() else "replaced"
            if found == "same":
                temporary.unlink()
            else:
                temporary.replace(target)
            for mark in folder.parent.glob(f"*/{image}.refused"):
                mark.unlink()
            sync(folder)
            return found

    def refuse(self, series: str, image: str) -> None:
        """Remember that an image of an open series was refused: without it, the series is not complete."""
        with self.lock, contextlib.suppress(OSError):
            folder = self.root / "incoming" / series
            if folder.is_dir() and not (folder / f"{image}.dcm").exists():
                (folder / f"{image}.refused").touch()
                sync(folder)

    def missing(self, series: str) -> int:
        """How many images of an open series were refused and did not come again."""
        return len(list((self.root / "incoming" / series).glob("*.refused")))

    def open_series(self) -> list[str]:
        """The names of the series that are still arriving."""
        return sorted(path.name for path in (self.root / "incoming").iterdir() if path.is_dir())

    def close_series(self, series: str, suspect: bool = False) -> Job:
        """Make a job of a series, ``suspect`` if it may lack images; those that come later open it anew."""
        with self.lock:
            job = Job(self.root / "jobs" / f"{self._next_number():06d}")
            job.path.mkdir(mode=0o700)
            job.add_note(series=series, missing=self.missing(series), suspect=suspect)
            (self.root / "incoming" / series).rename(job.source)
            sync(job.path)
            sync(job.path.parent)
            sync(self.root / "incoming")
            return job

    def jobs(self) -> list[Job]:
        """The closed series, oldest first."""
        folders = (path for path in (self.root / "jobs").iterdir() if path.name.isdigit())
        return [Job(path) for path in sorted(folders, key=lambda path: int(path.name)) if (path / "source").is_dir()]

    def count(self) -> int:
        """How many series wait, arriving ones included."""
        return len(self.open_series()) + len(self.jobs())

    def fail(self, job: Job, reason: str) -> None:
        """Keep a series aside that cannot be denoised or delivered; ``reason`` must say nothing of the patient."""
        (job.path / "reason.txt").write_text(reason + "\n", encoding="utf-8")
        job.path.rename(self.root / "failed" / job.path.name)
        sync(self.root / "failed")

    def finish(self, job: Job) -> None:
        """Remove a series that has been handed on."""
        done = self.root / "temporary" / job.path.name
        job.path.rename(done)
        sync(self.root / "jobs")
        remove(done)

    def record_path(self, series: str) -> Path:
        """Where it is written which images of a series were denoised or came without the rest."""
        return self.root / "records" / f"{series}.json"

    def release(self) -> None:
        """Let another process have the spool, without what was being received or removed."""
        for path in (self.root / "temporary").iterdir():
            remove(path)
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _next_number(self) -> int:
        path = self.root / "last_number"
        number = 1 + (int(path.read_text(encoding="ascii")) if path.exists() else 0)
        with replacing(path) as temporary:
            temporary.write_text(str(number), encoding="ascii")
        return number

    def _read_key(self) -> bytes:
        path = self.root / "key"
        if not path.exists():
            with replacing(path) as temporary:
                temporary.touch(mode=0o600)
                temporary.write_bytes(secrets.token_bytes(32))
        return path.read_bytes()

    def _tidy(self) -> None:
        """Remove what a killed process left half done, and old records."""
        for path in (self.root / "temporary").iterdir():
            remove(path)
        for path in (self.root / "jobs").iterdir():
            if not (path / "source").is_dir():
                remove(path)
            for unfinished in path.glob(".*"):
                remove(unfinished)
        for path in (self.root / "records").iterdir():
            if path.stat().st_mtime < time.time() - RECORDS_KEPT:
                remove(path)


def _hold(root: Path) -> int:
    """Lock a folder until this process ends."""
    file = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # Windows' locks raise the latter
        os.close(file)
        raise UsageError(f"the spool {root} is in use by another listener; name another with --spool.") from error
    return file
