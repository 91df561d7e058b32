"""The errors a user can cause, each with its exit code.

Every message says what was given (file, field, value), what was expected and the next move, in one short paragraph.
The command line prints the message alone and exits with ``exit_code``; library callers catch ``AdlError``.
"""

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class AdlError(Exception):
    """Base of all errors that a user can mend."""

    exit_code = 1


class UsageError(AdlError):
    """A wrong option, an ambiguous or empty input."""

    exit_code = 2


class ManifestError(UsageError):
    """A manifest that cannot be trusted: syntax, unknown keys, missing files, leaking splits."""


class ModelError(UsageError):
    """A model or bundle that does not exist, does not fit the input, or may not be run."""


class ScanFileError(AdlError):
    """An image file that is damaged, unsupported or holds values that cannot be denoised."""

    exit_code = 3


class SeriesGeometryError(AdlError):
    """A DICOM series whose slices do not form one regular volume."""

    exit_code = 4


class OutputError(AdlError):
    """An output that cannot be written, or would overwrite something."""

    exit_code = 5


class TrainingDivergedError(AdlError):
    """A non-finite loss during training."""

    exit_code = 6


class OutOfMemoryError(AdlError):
    """Not enough memory."""

    exit_code = 7


NO_MEMORY = re.compile(
    r"allocate memory|out of memory"
    r"|DataLoader worker .* killed by signal: (Killed|Bus error)"
    r"|DataLoader worker .* exited unexpectedly(?! with exit code)"  # of one that was killed; which comes, is luck
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out.

    torch's CPU allocator raises a plain ``RuntimeError``, and so does a loader of whose processes the system has killed
    one: it does that where memory ends, or shared memory.
    """
    for cause in _causes(error):
        if isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and NO_MEMORY.search(str(cause))):
            return True
    return False


def system_error(error: BaseException) -> AdlError | None:
    """What the system refused (memory, a disk, a name too long), in words; None for a programming error.

    For what no caller expected: doors and writers say it better, with the next move.
    """
    if is_out_of_memory(error):
        return OutOfMemoryError("not enough memory; close other programs, or use a machine with more.")
    refused = next((cause for cause in _causes(error) if isinstance(cause, OSError) and cause.strerror), None)
    if refused is None:
        return None
    full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EPIPE)
    kind = OutputError if refused.errno in full else ScanFileError
    name = f"{str(refused.filename)[:200]}: " if refused.filename else ""
    return kind(f"{name}the system refused it ({refused.strerror}); check the name, its permissions and the disk.")


def _causes(error: BaseException, contexts: bool = False) -> Iterator[BaseException]:
    """An exception and what it was raised from, as MONAI does with what its configs' expressions raise.

    Args:
        error: The exception.
        contexts: Where one was not raised from another, go on with the one that was being handled.
    """
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:  # what MONAI wrapped may be the cause of its own cause
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ or (cause.__context__ if contexts else None)


def user_error(error: BaseException) -> AdlError | None:
    """The ``AdlError`` inside an exception, which MONAI's transforms and configs wrap in their own; None if none is."""
    return next((cause for cause in _causes(error, contexts=True) if isinstance(cause, AdlError)), None)


def release_variables(error: BaseException) -> None:
    """Forget the scan that the variables of a traceback would keep in memory."""
    for cause in _causes(error, contexts=True):
        traceback.clear_frames(cause.__traceback__)


def refused_values(error: BaseException) -> tuple[str, str] | None:
    """What refused the values that it got, and what it said; None if that is not what happened.

    The refusal may lie deep in the chain of causes: a component that is built runs transforms, which are components
    too. The nearest one that MONAI names is meant.
    """
    place = "training"
    for cause in _causes(error):
        if isinstance(cause, ValueError | TypeError | AttributeError | LookupError | ArithmeticError):
            return place, str(cause).strip() or type(cause).__name__
        for pattern, named in _PLACES:
            if found := re.match(pattern, str(cause), re.DOTALL):
                place = named + re.sub(r"__local_refs\['(.*?)'\]", r"@\1", found[1]).replace("::", "#")
    return None


_PLACES = (  # in MONAI's words, and in ours
    (r"Failed to instantiate component '(?:\w+\.)*(\w+)'", ""),
    (r"applying transform <(?:\w+\.)*(\w+) object", ""),
    (r'Failed to evaluate ConfigExpression:.*"\$(.*?)"', "the expression "),
)


@contextmanager
def surfacing_user_errors() -> Iterator[None]:
    """Around calls into MONAI: an ``AdlError`` that MONAI wrapped comes out as itself."""
    try:
        yield
    except Exception as raised:
        error = user_error(raised)
        if error is None or error is raised:
            raise
        raise error from raised
