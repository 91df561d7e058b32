"""Checks of MetaImage and NRRD files that ITK leaves out.

ITK ignores the checksums of compressed voxels (measured with SimpleITK 2.5). These checks need no voxels in memory and
run before ITK allocates any.
"""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path

from adl_monai.errors import ScanFileError

_MOST_EXPANSION = 2000  # beyond what deflate can do (1032)
_CHUNK = 1 << 20
_MAX_HEADER = 1 << 20


def check_structure(path: Path, kind: str) -> None:
    """Check what can be checked before ITK sees the file, whose libraries complain on stderr.

    Args:
        path: The file.
        kind: ``mha`` or ``nrrd``.

    Raises:
        ScanFileError: If the file is of another format or cut short.
    """
    if kind == "mha":
        missing = {"ndims", "dimsize", "elementtype", "elementdatafile"} - _metaimage_fields(path)[0].keys()
        if missing:
            raise ScanFileError(f"{path}: this is not a MetaImage file, or its header is cut short.")
    else:
        with path.open("rb") as file:
            if file.read(4) != b"NRRD":
                raise ScanFileError(f"{path}: this is not a NRRD file; it is damaged or of another format.")


def check_voxel_bytes(path: Path, kind: str, claimed: int) -> None:
    """Refuse a file that cannot hold the voxels its header claims, or whose compressed voxels are damaged.

    Args:
        path: The file.
        kind: ``mha`` or ``nrrd``.
        claimed: Bytes of all voxels, by the header.

    Raises:
        ScanFileError: Naming what is wrong.
    """
    if kind == "mha":
        _check_metaimage(path, claimed)
    else:
        _check_nrrd(path, claimed)


def _metaimage_fields(path: Path) -> tuple[dict[str, str], int]:
    """The header's fields, names in lower case, and where it ends."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while file.tell() < _MAX_HEADER and "elementdatafile" not in fields:
            line = file.readline(_MAX_HEADER)
            if not line:
                break
            name, _, value = line.decode("latin-1").partition("=")
            fields[name.strip().lower()] = value.strip()
        return fields, file.tell()


def _check_metaimage(path: Path, claimed: int) -> None:
    fields, start = _metaimage_fields(path)
    data = fields.get("elementdatafile", "")
    if data.upper() != "LOCAL":
        start, source = 0, path.parent / data
        if data != Path(data).name or not data or "%" in data or not source.is_file():
            raise ScanFileError(
                f"{path}: header field ElementDataFile is {data!r}; expected LOCAL or the name of one file beside it."
            )
    else:
        source = path
    if fields.get("compresseddata", "").lower() in ("true", "1"):
        _check_stream(path, source, start, claimed)
    elif fields.get("binarydata", "").lower() in ("true", "1"):
        _check_raw(path, source, start, claimed)


def _check_nrrd(path: Path, claimed: int) -> None:
    with path.open("rb") as file:
        header = file.read(_MAX_HEADER)
    found = re.search(rb"\r?\n\r?\n", header)
    fields = header[: found.start() if found else len(header)].decode("latin-1").lower()
    if found is None or re.search(r"^data ?file:", fields, re.MULTILINE):
        raise ScanFileError(f"{path}: the voxels are not in this file; expected header and voxels in one .nrrd file.")
    encoding = re.search(r"^encoding: *(\S+)", fields, re.MULTILINE)
    name = encoding.group(1) if encoding else "missing"
    if name in ("gzip", "gz"):
        _check_stream(path, path, found.end(), claimed)
    elif name == "raw":
        _check_raw(path, path, found.end(), claimed)
    elif name not in ("ascii", "text", "txt", "hex"):
        raise ScanFileError(f"{path}: the NRRD encoding is {name}; expected raw, gzip, ascii or hex.")


def _check_raw(path: Path, source: Path, start: int, claimed: int) -> None:
    held = source.stat().st_size - start
    if held < claimed:
        raise ScanFileError(f"{path}: the header claims {claimed} bytes of voxels, the file holds {held}; cut short.")


def _check_stream(path: Path, source: Path, start: int, claimed: int) -> None:
    """Inflate a zlib or gzip stream to its end, which compares its checksum, keeping nothing."""
    held = source.stat().st_size
    if claimed > held * _MOST_EXPANSION:
        raise ScanFileError(f"{path}: the header claims {claimed} bytes of voxels, but the file has {held} bytes.")
    inflater, length = zlib.decompressobj(zlib.MAX_WBITS | 32), 0
    try:
        with source.open("rb") as file:
            file.seek(start, os.SEEK_SET)
            pending = file.read(_CHUNK)
            while pending and not inflater.eof and length <= claimed:
                length += len(inflater.decompress(pending, _CHUNK))
                pending = inflater.unconsumed_tail or file.read(_CHUNK)
            length += 0 if inflater.eof else len(inflater.flush())
    except zlib.error as error:
        raise ScanFileError(f"{path}: the compressed voxels are damaged ({error}); copy the file again.") from error
    if not inflater.eof or length != claimed:
        raise ScanFileError(
            f"{path}: the compressed voxels hold {length} bytes, the header claims {claimed}; cut short or damaged."
        )
