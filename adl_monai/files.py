"""What a file is called, whether there is one, and writing it whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adl_monai.errors import OutputError, ScanFileError, UsageError

SYNTHETIC = "synthetic:"  # begins the name of an image that is generated, not read


def named_path(path: Path) -> Path:
    """The absolute path, without following a link that stands last: its name may be all that tells what it is.

    Links on the way are followed, so that ``..`` means what it does to the system.
    """
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def require_file(path: Path) -> None:
    """Refuse a path that is not a file, and an empty file.

    Raises:
        UsageError: If there is no file of this name, or what has it is no regular file (a pipe, a folder).
        ScanFileError: If it holds no bytes or may not be read.
    """
    if not path.is_file():
        found = "not a regular file; copy what it holds into one" if path.exists() else "no such file; check the name"
        raise UsageError(f"{path}: {found}.")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ScanFileError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from error
    if size == 0:
        raise ScanFileError(f"{path}: the file is empty (0 bytes); copy it again from its source.")


def files_of(path: Path) -> list[Path]:
    """The file, or the files that lie right in the folder; none if there is neither."""
    if path.is_dir():
        return [child for child in path.iterdir() if child.is_file()]
    return [path] if path.is_file() else []


def size_of(path: Path) -> int:
    """Bytes of `files_of` a path."""
    return sum(file.stat().st_size for file in files_of(path))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside ``path``; what was written there takes the name ``path`` if the block succeeds.

    Raises:
        OutputError: If the file cannot be written. Nothing is left behind then, and an old file stays as it was.
    """
    try:
        with exchanging(path) as temporary:
            yield temporary
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); choose another place.") from error


@contextmanager
def exchanging(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """As ``replacing``, for callers that say themselves what an ``OSError`` means.

    Args:
        path: Holds the old file until it holds the new one.
        keep: Where the old file goes; between the two renames it is the only one.
    """
    # Unlike any other writer's, and short: a name may have 255 bytes.
    temporary = path.with_name(f"{temporary_start(path)}{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_start(path: Path) -> str:
    """How the temporary names of a file begin."""
    return f".{path.name[:40]}."
