"""Closes series that are complete and denoises them, one after the other, oldest first."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from threading import Event

from adl_monai.errors import AdlError, OutputError, SeriesGeometryError, user_error
from adl_monai.node.arrivals import Arrivals
from adl_monai.node.job import Job, write_json
from adl_monai.node.spool import Spool

logger = logging.getLogger(__name__)

RETRY = 60.0  # seconds after a passing fault, such as a full disk
KILLS = 3  # after which a series is not tried again
_SUSPECT = (
    "an association that brought it was aborted, cut off or silent for too long, or this program ended before the "
    "series was complete, and no more of it came"
)
_ADVICE = (
    "At this node: send each volume as a series of its own, or sort the files in source/ into folders, one volume in "
    "each, and run adl-monai infer on these."
)


class Worker:
    """The first half of the work.

    Args:
        spool: Holds the series.
        arrivals: Knows which are complete.
        denoise: Reads the first folder, makes the second whole or not at all, returns how many voxels were saturated.
        recipe: What `denoise` does and where results go, in words; a series that comes again is denoised again only if
            this changed, or its images did.
        report: Is told of what was done.
    """

    def __init__(
        self,
        spool: Spool,
        arrivals: Arrivals,
        denoise: Callable[[Path, Path], int],
        recipe: str,
        report: Callable[[str], None],
    ) -> None:
        self.spool, self.arrivals, self.denoise, self.recipe, self.report = spool, arrivals, denoise, recipe, report
        self._again: dict[int, float] = {}

    def run(self, stop: Event) -> None:
        """Work until told to stop."""
        for job in self.spool.jobs():
            if job.derived.is_dir():  # by a process that ended before it wrote this down
                self._write_record(job.note["series"], job.fingerprints())
        while not stop.is_set():
            try:
                busy = self.step()
            except (OSError, OutputError) as error:
                logger.error("the spool cannot be written (%s); trying again in %.0f s", type(error).__name__, RETRY)
                stop.wait(RETRY)
                continue
            if not busy:
                stop.wait(0.2)

    def step(self) -> bool:
        """Close what is complete, and work on one series; False if there was nothing to do."""
        for series in self.spool.open_series():
            with self.spool.lock:
                if self.arrivals.is_complete(series, self.spool.missing(series)):
                    job = self.spool.close_series(series, self.arrivals.is_suspect(series))
                    self.arrivals.forget(series)
                    self.report(f"series {job.number}: {len(job.images())} images received")
        for job in self.spool.jobs():
            if job.derived.is_dir() or not job.source.is_dir():  # denoised; or delivered, just now
                continue
            if self._again.get(job.number, 0.0) <= time.monotonic():
                self._work(job)
                return True
        return False

    def _work(self, job: Job) -> None:
        note = job.note
        fingerprints, record = job.fingerprints(), self._record(note["series"])
        if note["missing"] or note.get("suspect"):
            # So that the rest, if it comes alone, is not taken for a whole series.
            self._write_record(note["series"], {**dict.fromkeys(fingerprints, ""), **record})
            refused = f"{note['missing']} images were refused and did not come again (see the log)"
            why = refused if note["missing"] else _SUSPECT
            self._fail(job, f"{why}, so this series may be incomplete. Send the whole series again.")
            return
        if fingerprints.items() <= record.items():
            self.spool.finish(job)
            self.report(f"series {job.number}: came again and was denoised before; dropped")
            return
        if record.keys() - fingerprints.keys():
            self._fail(
                job,
                "these images came after others of their series had been closed without them. Send the whole series "
                "again; a longer --quiet-time waits for slow senders.",
            )
            return
        self._denoise(job, note["series"], fingerprints)

    def _denoise(self, job: Job, series: str, fingerprints: dict[str, str]) -> None:
        began, kills = time.monotonic(), job.note.get("kills", 0)
        if kills >= KILLS:
            self._fail(job, f"this program was killed {kills} times while denoising this series; is memory short?")
            return
        job.add_note(kills=kills + 1)  # so it stays if there is no time to take it back
        try:
            clipped = self._denoise_or_take_back(job, kills)
        except Exception as error:
            known = user_error(error)
            if known is not None and self._is_passing(known):
                self._again[job.number] = time.monotonic() + RETRY
                logger.error("series %d: %s It is tried again in %.0f s.", job.number, known, RETRY)
            else:
                self._fail(job, _reason(known or error, job))
            return
        seconds = time.monotonic() - began
        self._write_record(series, fingerprints)
        saturated = f", {clipped} voxels saturated" if clipped else ""
        self.report(f"series {job.number}: denoised in {seconds:.1f} s{saturated}")

    def _denoise_or_take_back(self, job: Job, kills: int) -> int:
        try:
            return self.denoise(job.source, job.derived)
        except BaseException:  # an orderly end, by a signal or an error, is no kill
            job.add_note(kills=kills)
            raise

    def _write_record(self, series: str, fingerprints: dict[str, str]) -> None:
        write_json(self.spool.record_path(series), {"recipe": self.recipe, "images": fingerprints})

    def _record(self, series: str) -> dict[str, str]:
        """What came of a series before: fingerprints by image; empty ones of those that were not denoised."""
        path = self.spool.record_path(series)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return dict(record["images"]) if record["recipe"] == self.recipe else {}
        except (OSError, ValueError, KeyError):
            return {}

    def _is_passing(self, error: AdlError) -> bool:
        return isinstance(error, OutputError) and (isinstance(error.__cause__, OSError) or not self.spool.has_room(0))

    def _fail(self, job: Job, reason: str) -> None:
        logger.error("series %d: %s It is kept in the spool's folder failed/%s.", job.number, reason, job.path.name)
        self.spool.fail(job, reason)


def _reason(error: Exception, job: Job) -> str:
    """For people, without the spool's path; an unexpected error's own text may quote the image, and is left out."""
    if isinstance(error, AdlError):
        said = str(error).replace(f"{job.source}/", "").replace(str(job.source), "the series")
        return f"{said} {_ADVICE}" if isinstance(error, SeriesGeometryError) else said
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} at {Path(place.filename).name}:{place.lineno}; please report it."
