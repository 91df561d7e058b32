"""Outputs, files and folders alike: refused before any work is done for them, and given their names in one step."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adl_monai.data.formats import OUTPUT_SUFFIXES, output_format, scan_format, scan_suffix
from adl_monai.errors import OutputError
from adl_monai.files import size_of

_OURS = re.compile(r"IM_\d{4,}\.dcm")
_TAKEN = "another process wrote this output meanwhile; it was left as it is."


def make_folder_of(output: Path, other: str = "another -o (--output_dir in MONAI's runner)") -> None:
    """Make the folder that an output goes into.

    Args:
        output: A file or folder.
        other: What to choose where that cannot be.

    Raises:
        OutputError: If it cannot be made.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {output.parent} cannot be made ({error.strerror}); choose {other}.") from error


def check_output(path: Path, source: Path | None = None, overwrite: bool = False) -> None:
    """Refuse an output before any work is done for it.

    Args:
        path: The file to be written; or, for a DICOM source, the folder.
        source: The input it will be made from; the output may be neither it, nor a link to it, nor inside it.
        overwrite: Whether an existing output may be replaced: a folder only if it holds nothing but a series that was
            written here.

    Raises:
        OutputError: If the format cannot be written, the folder is missing or read-only, the output is in the way, or
            the disk has no room.
    """
    dicom = output_format(path) == "dicom"
    folder = dicom and not scan_suffix(path)
    _check_format(path, source, dicom)
    if path.is_dir() and not folder:
        raise OutputError(f"{path}: this is a folder; name a file to write.")
    if source is not None:
        _check_apart(path, source, folder)
    if folder and path.is_dir():
        _check_old_folder(path, overwrite)
    elif folder and path.exists():
        raise OutputError(f"{path}: this is a file; name a folder for the DICOM series.")
    elif not overwrite and (path.exists() or path.is_symlink()):
        raise OutputError(f"{path}: this file exists; choose another name or allow overwriting (--overwrite).")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: its folder does not exist or is not writable; make it, or choose another.")
    if source is not None:  # compression is rarely better than twice as good
        check_room(path, size_of(source) // 2)


@contextmanager
def publishing(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yields a temporary name beside ``path``; what the block wrote there takes the name ``path`` if it succeeds.

    Raises:
        OutputError: If the output cannot be written. Nothing is left behind then, and an old one stays as it was.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}{scan_suffix(path).lower()}")
    try:
        yield temporary
        publish(temporary, path, overwrite)
    except OSError as error:
        raise OutputError(
            f"{path}: could not be written ({error.strerror or error}); nothing was left behind."
        ) from error
    finally:
        remove(temporary)


def sync(path: Path) -> None:
    """Make sure that a file, or the entries of a folder, are on the disk."""
    if path.is_dir():
        _sync_folder(path)
        return
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def publish(temporary: Path, path: Path, overwrite: bool) -> None:
    """Give a finished output its name in one step; without ``overwrite`` only if nobody took the name meanwhile."""
    if temporary.is_dir():
        _publish_folder(temporary, path, overwrite)
    elif overwrite:
        temporary.replace(path)
    else:
        try:
            os.link(temporary, path)
        except FileExistsError as error:
            raise OutputError(f"{path}: {_TAKEN}") from error
        except OSError:  # a file system without links
            if path.exists():
                raise OutputError(f"{path}: {_TAKEN}") from None
            temporary.replace(path)
    _sync_folder(path.parent)


def remove(temporary: Path) -> None:
    """Remove an unfinished output, if there is one."""
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)


def _publish_folder(temporary: Path, path: Path, overwrite: bool) -> None:
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise OutputError(f"{path}: {_TAKEN}")
        _check_old_folder(path, overwrite)
        old = path.with_name(f".{secrets.token_hex(8)}")
        path.rename(old)
        try:
            temporary.rename(path)
        except BaseException:
            old.rename(path)
            raise
        remove(old)
        return
    if path.is_dir():
        path.rmdir()
    temporary.rename(path)


def _check_format(path: Path, source: Path | None, dicom: bool) -> None:
    suffix = scan_suffix(path).lower()
    from_dicom = source is not None and scan_format(source) == "dicom"
    if dicom and from_dicom:
        if suffix == ".dcm" and source is not None and source.is_dir():
            raise OutputError(f"{path}: a series is many files; name a folder without a suffix, or a .nii.gz file.")
        if suffix in ("", ".dcm"):
            return
    elif suffix in OUTPUT_SUFFIXES:
        return
    expected = f"one of {', '.join(OUTPUT_SUFFIXES)}"
    if from_dicom:
        expected += ", .dcm or, for a DICOM series, a folder"
    elif dicom:
        expected += " (DICOM is written from DICOM alone)"
    raise OutputError(f"{path}: cannot write this format; expected {expected}.")


def _check_apart(path: Path, source: Path, folder: bool) -> None:
    output, origin = path.resolve(), source.resolve()
    if output == origin or (path.exists() and source.exists() and path.samefile(source)):
        raise OutputError(f"{path}: the output is the input {source}, or a link to it; choose another name.")
    if origin in output.parents:
        raise OutputError(f"{path}: the output lies inside the input {source}; choose a place outside it (-o).")
    if folder and output in origin.parents:
        raise OutputError(f"{path}: this folder holds the input {source}; name a new folder (-o).")


def _check_old_folder(path: Path, overwrite: bool) -> None:
    if path.resolve() == Path.cwd() or os.path.ismount(path):
        raise OutputError(f"{path}: this folder cannot be replaced; name a new folder inside it (-o).")
    names = [child.name for child in path.iterdir()]
    if not names:
        return
    if not overwrite:
        raise OutputError(
            f"{path}: this folder exists and is not empty; name a new folder for the DICOM series, or pass --overwrite "
            "to replace a series that was written there."
        )
    if not all(_OURS.fullmatch(name) for name in names):
        raise OutputError(
            f"{path}: this folder holds other things than a denoised DICOM series (IM_0001.dcm, ...), which replacing "
            "it would erase; name a new folder."
        )


def check_room(path: Path, needed: int) -> None:
    """Refuse an output whose disk has less than ``needed`` bytes left.

    Raises:
        OutputError: Naming both numbers.
    """
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise OutputError(
            f"{path}: the disk has {free:,} bytes left and this needs at least {needed:,}; make room "
            "or choose another place (-o)."
        )


def _sync_folder(path: Path) -> None:
    if os.name != "posix":
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
