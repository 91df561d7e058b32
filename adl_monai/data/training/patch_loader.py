"""The loader of training patches: a thread draws ahead, and what goes wrong there ends the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from monai.data import Dataset, ThreadDataLoader
from monai.data.thread_buffer import ThreadBuffer

from adl_monai.errors import AdlError, UsageError, is_out_of_memory, system_error, user_error

SECONDS_TO_DIE = 5.0  # a killed process lets go of its connections some moments before the system calls it dead


class PatchLoader(ThreadDataLoader):
    """MONAI's ``ThreadDataLoader``, which fails when its thread fails.

    In MONAI's, an error ends the thread without a word, and the loader with it: a trainer takes the epoch for complete,
    or starts it anew. Here the batches drawn before the error come first, then the error itself, with its traceback.

    Args:
        dataset: of patches, with a length.
        **options: as in ``ThreadDataLoader``.

    Raises:
        UsageError: If the dataset does not fill one batch, and incomplete ones are dropped.
        Exception: When iterated, whatever ended the thread or a worker process.
    """

    def __init__(self, dataset: Dataset, **options: Any) -> None:
        super().__init__(dataset, **options)
        if len(self) == 0:
            processes = getattr(self.sampler, "num_replicas", 1)
            batch = self.batch_size or 1
            shared = f", shared by {processes} processes," if processes > 1 else ""
            raise UsageError(
                f"patches_per_epoch={len(dataset)} with batch_size={batch}{shared} leaves no batch for a step: "
                f"incomplete ones are dropped. Give at least patches_per_epoch={batch * processes}, or a smaller "
                "--batch-size."
            )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches, each ``repeats`` times."""
        source = super(ThreadDataLoader, self).__iter__()  # made here: it draws from this thread's random generator
        for batch in PassingBuffer(naming_deaths(source), self.buffer_size, self.buffer_timeout):
            for _ in range(self.repeats):
                yield batch


class PassingBuffer(ThreadBuffer):
    """MONAI's ``ThreadBuffer``, which passes on what ended its thread."""

    error: BaseException | None = None

    def enqueue_values(self) -> None:
        """What the thread does."""
        try:
            super().enqueue_values()
        except BaseException as error:
            self.error = error

    def __iter__(self) -> Iterator[Any]:
        """The values, then the error, if there was one."""
        yield from super().__iter__()
        if self.error is not None:
            raise as_raised_here(self.error)


def naming_deaths(source: Iterator[Any]) -> Iterator[Any]:
    """The batches of torch's loader, which tells of every killed process in the words of ``is_out_of_memory``.

    torch does where it finds the process dead. Where that hands over a batch at the time, multiprocessing tells of a
    lost connection first.
    """
    try:
        yield from source
    except (OSError, EOFError) as error:
        ends = [process.sentinel for process in getattr(source, "_workers", ())]
        from_the_dataset = str(error).startswith("Caught ")  # in a process, in torch's words
        if from_the_dataset or not ends or not wait(ends, SECONDS_TO_DIE):
            raise
        raise RuntimeError("DataLoader worker exited unexpectedly while it handed over a batch") from error


@contextmanager
def errors_that_travel() -> Iterator[None]:
    """Around the drawing of a patch: of a worker's error torch hands on the kind and the text, but no causes.

    So what a user can mend, which MONAI wraps, comes out as itself; memory that ran out as ``MemoryError``.
    """
    try:
        yield
    except Exception as raised:
        error: BaseException | None = user_error(raised)
        if error is None:
            error = MemoryError(str(raised)) if is_out_of_memory(raised) else system_error(raised)
        if error is None or error is raised:
            raise
        raise error from raised


def as_raised_here(error: BaseException) -> BaseException:
    """A worker's error without the traceback that torch has put into its text, which stays its cause."""
    kind, text = type(error), str(error)
    _, found, said = text.rpartition(f"{kind.__module__}.{kind.__qualname__}: ")
    if not (isinstance(error, AdlError) and found and text.startswith("Caught ")):
        return error
    told = kind(said.rstrip())
    told.__cause__ = error
    return told
