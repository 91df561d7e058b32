"""What a file is called, and writing it whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adl_monai.errors import OutputError


def named_path(path: Path) -> Path:
    """The absolute path, without following a link that stands last: its name may be all that tells what it is.

    Links on the way are followed, so that ``..`` means what it does to the system.
    """
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside ``path``; what was written there takes the name ``path`` if the block succeeds.

    Raises:
        OutputError: If the file cannot be written. Nothing is left behind then, and an old file stays as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); choose another place.") from error
    finally:
        temporary.unlink(missing_ok=True)
