"""What became of many scans: results, failures, and the line that sums them up."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adl_monai.errors import AdlError, OutputError, release_variables, system_error
from adl_monai.stages.outputs import Job, is_done

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InferenceResult:
    """One denoised scan."""

    source: Path
    output: Path
    clipped: int
    """Voxels that did not fit the output's integer type and were saturated."""
    sliced: bool = False
    """Whether it is a volume that a 2D model denoised slice by slice."""


class Tally:
    """What became of the scans, one after the other.

    Args:
        total: How many there are, the skipped ones included.
        skipped: How many need not be done.
        report: Is told of each that was.
        resume: Whether what another process wrote meanwhile is skipped too.
    """

    def __init__(
        self, total: int, skipped: int, report: Callable[[InferenceResult], None] | None, resume: bool = False
    ) -> None:
        self.total, self.skipped, self.report, self.resume = total, skipped, report, resume
        self.results: list[InferenceResult] = []
        self.failures: list[tuple[Job, AdlError]] = []

    def settle(self, job: Job, outcome: Callable[[], InferenceResult]) -> None:
        """Take down one scan's result, or why there is none.

        Raises:
            AdlError: The error of a single scan.
            Exception: An error that is no fault of the scan or the system.
        """
        try:
            result = outcome()
        except Exception as raised:
            error = raised if isinstance(raised, AdlError) else system_error(raised)
            if self.resume and isinstance(error, OutputError) and is_done(job):
                release_variables(raised)
                self.skipped += 1
                return
            if self.total == 1 or error is None:
                raise
            logger.error("%s", _reason(job, error))
            release_variables(raised)
            self.failures.append((job, error))
            return
        self.results.append(result)
        if self.report is not None:
            self.report(result)

    def raise_failures(self) -> None:
        """Raise an error of the first failure's kind, if there are any, with a note that lists them.

        Each was logged when it was met; the message does not say it all again.
        """
        if self.failures:
            first = self.failures[0][1]
            error = type(first)(f"{len(self.failures)} of {self.total} scans failed, for the reasons given above.")
            error.add_note("\n".join(_reason(job, failure) for job, failure in self.failures))
            raise error from first

    def __str__(self) -> str:
        return f"{len(self.results)} denoised, {self.skipped} skipped, {len(self.failures)} failed"


def _reason(job: Job, error: AdlError) -> str:
    return str(error) if str(job.source) in str(error) else f"{job.source}: {error}"
