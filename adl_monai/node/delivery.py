"""Hands denoised series on, to a folder and to a peer; what fails stays in the spool and is tried again.

Only what the peer refuses for good goes to ``failed`` after some tries, or it would take the place of all others.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Event

from adl_monai.data.output import publish, remove, sync
from adl_monai.errors import AdlError
from adl_monai.node.forward import DeliveryError, RefusedError, send
from adl_monai.node.job import Job
from adl_monai.node.network import Peer
from adl_monai.node.spool import Spool

logger = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 2.0, 300.0  # seconds, doubled from try to try
REFUSALS = 8  # after which a series is given up: about four minutes, should the peer only be out of order


class Delivery:
    """The second half of the work, for a thread of its own.

    Args:
        spool: Holds the series.
        aet: Our AE title.
        peer: Where to send them, if anywhere.
        out: Folder to write them below, if any.
        report: Is told of what was done.
    """

    def __init__(
        self, spool: Spool, aet: str, peer: Peer | None, out: Path | None, report: Callable[[str], None]
    ) -> None:
        self.spool, self.aet, self.peer, self.out, self.report = spool, aet, peer, out, report
        self._tries: dict[int, tuple[int, float]] = {}  # failures of a series, and when to try again
        self._refusals: Counter[int] = Counter()

    def run(self, stop: Event) -> None:
        """Deliver until told to stop."""
        while not stop.wait(0.2):
            try:
                for job in self.spool.jobs():
                    if job.derived.is_dir() and self._tries.get(job.number, (0, 0.0))[1] <= time.monotonic():
                        self.try_to_deliver(job, stop)
            except OSError as error:
                logger.error("the spool cannot be used (%s); trying again in %.0f s", _reason(error), LONGEST_WAIT)
                stop.wait(LONGEST_WAIT)

    def try_to_deliver(self, job: Job, stop: Event) -> bool:
        """One try; True if the series is delivered and gone from the spool."""
        sent = ""
        try:
            if self.out is not None:
                self._write(job, self.out)
            if self.peer is not None:
                files = sorted(job.derived.glob("*.dcm"))
                send(self.peer, self.aet, files, stop)
                sent = f"series {job.number}: sent to {self.peer} ({len(files)} images)"
            self.spool.finish(job)
        except Exception as error:  # whatever it is, the series stays and is tried again
            if stop.is_set():
                return False
            self._refusals[job.number] += isinstance(error, RefusedError)
            if self._refusals[job.number] >= REFUSALS:
                self._give_up(job, str(error))
                return False
            failures = self._tries.get(job.number, (0, 0.0))[0] + 1
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(failures - 1, 10))
            self._tries[job.number] = (failures, time.monotonic() + wait)
            logger.warning(
                "series %d: not delivered (%s); it stays in the spool, next try in %.0f s",
                job.number, _reason(error), wait,
            )  # fmt: skip
            return False
        self._forget(job)
        if sent:
            self.report(sent)
        return True

    def _give_up(self, job: Job, said: str) -> None:
        reason = (
            f"{said}, {REFUSALS} times. The denoised images are in derived/: once the peer takes them, send them by "
            "hand, or the series to this node again."
        )
        self.spool.record_path(job.note["series"]).unlink(missing_ok=True)  # or it would be dropped as done
        self.spool.fail(job, reason)
        self._forget(job)
        logger.error("series %d: %s It is kept in the spool's folder failed/%s.", job.number, reason, job.path.name)

    def _forget(self, job: Job) -> None:
        self._tries.pop(job.number, None)
        self._refusals.pop(job.number, None)

    def _write(self, job: Job, out: Path) -> None:
        """Copy to ``out``, once, even if the process is killed in between."""
        name = job.note.get("out")
        if name is not None and (out / name).is_dir():
            return
        if name is None:
            plain = name = f"series_{job.number:06d}"
            while (out / name).exists():  # of another spool
                name = f"{plain}_{int(name.removeprefix(plain).lstrip('_') or 1) + 1}"
            job.add_note(out=name)
        temporary = out / f".{name}.tmp"
        remove(temporary)
        try:
            shutil.copytree(job.derived, temporary)
            for path in temporary.iterdir():
                sync(path)
            sync(temporary)
            publish(temporary, out / name, overwrite=False)
        finally:
            remove(temporary)
        self.report(f"series {job.number}: written to {out / name}")


def _reason(error: Exception) -> str:
    if isinstance(error, (DeliveryError, AdlError)):
        return str(error)
    return str(error.strerror or type(error).__name__) if isinstance(error, OSError) else type(error).__name__
