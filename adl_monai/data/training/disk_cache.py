"""Prepared cases kept on a disk and mapped into memory, for data sets that are larger than the memory.

A case is prepared (decoded, normalised) once, by whichever run comes first. Its folder is named by a hash of
what made it: the files' paths, sizes and times of change, the transforms with their settings, and the versions of this
package and of MONAI. It holds plain arrays (``.npy``, never pickles) and ``entry.json`` with their checksums.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from tqdm import tqdm

from adl_monai.data.training.case_cache import Refusals
from adl_monai.data.training.identity import describe, identity
from adl_monai.errors import OutputError, UsageError
from adl_monai.version import __version__

logger = logging.getLogger(__name__)

FORMAT = 1
TEMPORARY = ".preparing-"
ABANDONED = 24 * 3600.0  # seconds after which a run that left a temporary folder is taken for dead
CHUNK = 2**24
ATTEMPTS = 3


class DiskCache(Sequence[dict[str, Any]]):
    """The prepared cases of a data list; each is prepared when the cache is made, if no earlier run did that.

    A case comes as a dictionary of tensors that are mapped from its files, so that only what is looked at is read;
    writing into them changes neither the files nor what others see. Meta data of MetaTensors are not kept. Each process
    compares a case with its checksums when it first uses it, unless another that shares this object has done so; what
    is damaged is prepared anew. Several runs may share a folder. It holds the scans' intensities: protect it as you
    protect them. To make room, delete it; what is no longer used stays there until then.

    Args:
        folder: made if there is none.
        data: one dictionary a case, of file names and plain values.
        transform: the deterministic transforms that prepare a case.
        progress: show a bar while cases are prepared.

    Raises:
        OutputError: If the folder cannot be written.
        ScanFileError: Or SeriesGeometryError: if scans are damaged or unusable; all of them are named.
        UsageError: If a transform cannot be told from another (it cannot be pickled), or a prepared case holds anything
            but tensors and plain values.
    """

    def __init__(
        self, folder: str | Path, data: Sequence[Mapping[str, Any]], transform: Compose, progress: bool = False
    ) -> None:
        self.folder = Path(folder).resolve()
        self.data = data
        self.transform = transform
        recipe = [FORMAT, __version__, monai.__version__, [describe(step) for step in transform.transforms]]
        self._names = [_hash([recipe, {key: identity(value) for key, value in case.items()}]) for case in data]
        # In shared memory: workers that are started anew in every epoch need not check everything again.
        self._checked = torch.zeros(len(data), dtype=torch.bool).share_memory_()
        self._mapped: dict[int, dict[str, Any]] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self.folder)
        except OSError as error:
            raise self._unwritable(error) from error
        missing = [index for index, name in enumerate(self._names) if read_entry(self.folder / name) is None]
        if missing:
            logger.info("preparing %d of %d cases for the cache %s", len(missing), len(data), self.folder)
        start = os.getpid() % max(1, len(missing))  # processes that start together begin at different cases
        refusals = Refusals(len(data))
        turns = missing[start:] + missing[:start]
        for index in tqdm(turns, desc="Preparing cases", unit="case", disable=not (progress and missing)):
            if read_entry(self.folder / self._names[index]) is None:  # no other has been quicker
                with refusals.collecting():
                    self._prepare(index)
        refusals.raise_them()

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        """The case ``index``."""
        case = self._mapped.get(index)
        if case is None:
            case = read_entry(self.folder / self._names[index], check=not self._checked[index])
            if case is None:
                logger.warning("case %d of the cache %s is damaged or gone: it is prepared anew", index, self.folder)
                case = self._prepare(index)
            self._checked[index] = True
            self._mapped[index] = case
        return case

    def glance(self, index: int) -> dict[str, Any]:
        """The case ``index`` as its files have it, not checked: for a look at little of it."""
        return read_entry(self.folder / self._names[index]) or {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}  # another process maps the files itself

    def _prepare(self, index: int) -> dict[str, Any]:
        case = self.transform(self.data[index], threading=True)
        entry = self.folder / self._names[index]
        try:
            temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=self.folder))
            try:
                write_entry(temporary, case)
                _publish(temporary, entry)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise self._unwritable(error) from error
        prepared = read_entry(entry, check=True)
        if prepared is None:
            raise OutputError(
                f"the cache {self.folder} does not give back what was written to it; choose another cache_dir on a "
                "sound disk, or none."
            )
        return prepared

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"the cache {self.folder} cannot be written ({error.strerror or error}); make room, choose another "
            "cache_dir, or none to keep the cases in memory."
        )


def write_entry(folder: Path, case: Mapping[str, Any]) -> None:
    """Write a prepared case: its tensors as they are, and its plain values.

    Raises:
        UsageError: If it holds anything else.
        OSError: If it cannot be written.
    """
    arrays: list[dict[str, Any]] = []
    values: dict[str, Any] = {}
    for key, value in case.items():
        if isinstance(value, torch.Tensor | np.ndarray):
            array = (
                (value.as_tensor() if isinstance(value, MetaTensor) else torch.as_tensor(value)).contiguous().numpy()
            )
            np.save(folder / f"{len(arrays)}.npy", array, allow_pickle=False)
            checksum = zlib.crc32(array.data.cast("B"))
            arrays.append({"key": key, "shape": list(array.shape), "dtype": array.dtype.str, "crc32": checksum})
        elif value is None or isinstance(value, bool | int | float | str):
            values[key] = value
        else:
            raise UsageError(
                f"a prepared case holds a {type(value).__name__} as {key!r}; cache_dir keeps tensors and plain values "
                "only. Drop it in a transform before the first random one, or train without cache_dir."
            )
    (folder / "entry.json").write_text(json.dumps({"arrays": arrays, "values": values}), encoding="utf-8")


def read_entry(folder: Path, check: bool = False) -> dict[str, Any] | None:
    """The case in a folder, its arrays mapped; None if it is not there, or not what was written.

    Args:
        folder: As ``write_entry`` left it.
        check: Read the arrays and compare them with their checksums, not only their shapes and sizes.
    """
    try:
        entry = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
        case: dict[str, Any] = dict(entry["values"])
        for number, recorded in enumerate(entry["arrays"]):
            path = folder / f"{number}.npy"
            array = np.load(path, mmap_mode="c", allow_pickle=False)
            sound = [list(array.shape), array.dtype.str] == [recorded["shape"], recorded["dtype"]]
            if not sound or path.stat().st_size != array.offset + array.nbytes:
                return None
            if check and _checksum(path, array.offset) != recorded["crc32"]:
                return None
            case[recorded["key"]] = torch.from_numpy(array)
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return case


def _checksum(path: Path, offset: int) -> int:
    checksum = 0
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _publish(temporary: Path, entry: Path) -> None:
    """Give a whole case its name, unless another run was quicker; a damaged one there is removed."""
    for attempt in range(ATTEMPTS):
        try:
            os.rename(temporary, entry)
            return
        except OSError:
            if read_entry(entry, check=True) is not None:
                return
            if attempt == ATTEMPTS - 1:
                raise
            aside = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=entry.parent))
            try:
                os.rename(entry, aside / "damaged")
            except FileNotFoundError:
                pass  # another run removes it too
            finally:
                shutil.rmtree(aside, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """What a run that was killed left behind."""
    for path in folder.glob(f"{TEMPORARY}*"):
        try:
            if time.time() - path.stat().st_mtime > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:
            pass  # its run has just finished it


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
