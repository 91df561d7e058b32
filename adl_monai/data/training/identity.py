"""What makes two inputs, or two transforms, the same: plain values that can be compared and hashed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from itertools import islice
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch

from adl_monai.errors import ScanFileError, UsageError

LONGEST_LINE, MOST_LINES = 2**16, 1000  # of a header, after which come voxels


def identity(value: Any) -> Any:
    """What says whether a case's entry is still the same: of a scan its path, size (bytes) and time of change (ns).

    Args:
        value: a file (of a MetaImage header, the file of its voxels counts, too), a folder (all files below it count),
            or anything else, which stands for itself.

    Raises:
        ScanFileError: If a file cannot be looked at.
    """
    if not isinstance(value, str | os.PathLike):
        return describe(value)
    path = Path(value)
    try:
        if path.is_dir():
            files = sorted(item for item in path.rglob("*") if item.is_file())
            return [str(path.resolve()), [[str(item.relative_to(path)), *_state(item)] for item in files]]
        if path.is_file():
            return [str(path.resolve()), *_state(path), *_state_of_voxels_beside(path)]
    except OSError as error:
        raise ScanFileError(
            f"{error.filename or path}: it cannot be looked at ({error.strerror}); check that it exists and its "
            "permissions."
        ) from error
    return str(value)  # a synthetic volume's specification


def describe(value: Any) -> Any:
    """An object as JSON values: its class and all of its state, such that equal ones are described equally.

    Args:
        value: a transform or what it holds: whatever can be pickled, though nothing is pickled here.

    Raises:
        UsageError: If an object does not reveal its state.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {"mapping": sorted(([describe(key), describe(item)] for key, item in value.items()), key=str)}
    if isinstance(value, set | frozenset):
        return {"set": sorted((describe(item) for item in value), key=str)}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return {"array": value.tolist(), "dtype": value.dtype.str}
    if isinstance(value, torch.Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, FunctionType):  # a lambda has no name of its own
        code = value.__code__
        return [
            value.__module__,
            value.__qualname__,
            code.co_code.hex(),
            repr(code.co_consts),
            describe([value.__defaults__, [cell.cell_contents for cell in value.__closure__ or ()]]),
        ]
    if isinstance(value, type | torch.dtype | torch.device | np.dtype | Enum | Path):
        return str(value)
    try:
        made = value.__reduce_ex__(2)
        parts = made if isinstance(made, str) else [*made[:3], *(list(items or ()) for items in made[3:5])]
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", "state": describe(parts)}
    except (TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"a {type(value).__name__} does not reveal its state ({str(error)[:200]}), so that what it prepares cannot "
            "be told from what another prepares; train without cache_dir, or use another transform before the first "
            "random one."
        ) from error


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _state_of_voxels_beside(path: Path) -> list[int | str]:
    """Of the file that a MetaImage header (``.mhd``) names; nothing where the voxels are in the same file."""
    if path.suffix.lower() not in (".mhd", ".mha"):
        return []
    with path.open("rb") as file:
        for line in islice(iter(lambda: file.readline(LONGEST_LINE), b""), MOST_LINES):
            field, _, value = line.partition(b"=")
            if field.strip().lower() == b"elementdatafile":
                voxels = path.parent / os.fsdecode(value.strip())
                return [voxels.name, *_state(voxels)] if voxels.is_file() else []
    return []
