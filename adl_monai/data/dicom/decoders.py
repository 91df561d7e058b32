"""Compressed pixels of DICOM images: which of the decoders that are installed beside pydicom are trusted with them."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder, pixel_array
from pydicom.pixels.decoders import gdcm as gdcm_plugin
from pydicom.uid import (
    UID,
    JPEG2000TransferSyntaxes,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

from adl_monai.data.dicom.header import SliceHeader
from adl_monai.errors import ScanFileError

SAFE_GDCM = (3, 0, 25)
"""The first that refuses a damaged frame: python-gdcm 3.0.24.1 gave back what lay in memory, for most syntaxes."""

LENIENT = "pylibjpeg"
"""Of JPEG and JPEG-LS that is cut short, pylibjpeg-libjpeg 2.5.0 gives back what there is, and no word of it."""

END = b"\xff\xd9"
"""The last marker of a code stream of JPEG, JPEG-LS and JPEG 2000 (ITU-T T.81, T.87, T.800)."""

PADDING = b"\0\xff"  # to an even length


def has_decoder(syntax: UID) -> bool:
    """Whether pixels in a transfer syntax can be decoded here, and damaged ones are refused."""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return False
    return not decoder.is_encapsulated or bool(_trusted(syntax))


def decode(dataset: pydicom.Dataset, header: SliceHeader) -> np.ndarray:
    """Stored values of one image plane, (rows, columns).

    Raises:
        ScanFileError: If no decoder that is trusted with them is installed, or the frame is cut short.
        Exception: Nearly any, of a decoder that refuses the frame.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    _require_decoder(syntax, header)
    index = header.frame if header.frames > 1 else None
    if not syntax.is_encapsulated:
        return pixel_array(dataset, index=index)
    _require_end(dataset, header)
    *others, last = _trusted(syntax)
    for plugin in others:
        try:
            return pixel_array(dataset, index=index, decoding_plugin=plugin)
        except MemoryError:
            raise
        except Exception:  # another may know this variant
            continue
    return pixel_array(dataset, index=index, decoding_plugin=last)


def _trusted(syntax: UID) -> list[str]:
    """Names of pydicom's plugins. What a strict one refuses is not for a lenient one, which alone knows 12-bit JPEG."""
    plugins = get_decoder(syntax).available_plugins
    safe = [plugin for plugin in plugins if plugin != "gdcm" or _gdcm_version() >= SAFE_GDCM]
    if syntax not in JPEGTransferSyntaxes + JPEGLSTransferSyntaxes or syntax == JPEGExtended12Bit:
        return safe
    return [plugin for plugin in safe if plugin != LENIENT] or safe


def _gdcm_version() -> tuple[int, ...]:
    return getattr(gdcm_plugin, "GDCM_VERSION", SAFE_GDCM)  # pydicom has none where gdcm is not installed


def _require_decoder(syntax: UID, header: SliceHeader) -> None:
    if has_decoder(syntax):
        return
    given, expected = (".".join(map(str, version)) for version in (_gdcm_version(), SAFE_GDCM))
    with suppress(NotImplementedError):
        if "gdcm" in get_decoder(syntax).available_plugins:
            raise ScanFileError(
                f"{header.path}: the decoder for {syntax.name}, gdcm {given}, does not refuse damaged pixels; expected "
                f"{expected} or later (pip install --upgrade python-gdcm), or decompress the file first."
            )
    raise ScanFileError(
        f"{header.path}: no decoder for {syntax.name} is installed; install one (pip install python-gdcm), or "
        "decompress the file first."
    )


def _require_end(dataset: pydicom.Dataset, header: SliceHeader) -> None:
    """No decoder is asked whether a frame is whole: some are silent about it."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in JPEGTransferSyntaxes + JPEGLSTransferSyntaxes + JPEG2000TransferSyntaxes:
        return
    table = "ExtendedOffsetTable"
    offsets = (dataset[table].value, dataset[f"{table}Lengths"].value) if table in dataset else None
    frame = get_frame(dataset.PixelData, header.frame, extended_offsets=offsets, number_of_frames=header.frames)
    if not frame.rstrip(PADDING).endswith(END):
        raise ScanFileError(
            f"{header.label}: the compressed pixels ({syntax.name}) do not end as they should; the file is cut short."
        )
