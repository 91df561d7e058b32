"""Stored values of DICOM images."""

from __future__ import annotations

import numpy as np
import pydicom

from adl_monai.data.dicom.decoders import decode
from adl_monai.data.dicom.header import SliceHeader
from adl_monai.data.dicom.padding import padded_pixels
from adl_monai.data.dicom.parse import discreet, parse
from adl_monai.errors import ScanFileError


class PixelReader:
    """Reads image planes; the file read last stays in memory, for its other frames."""

    def __init__(self) -> None:
        self._dataset: pydicom.Dataset | None = None
        self._header: SliceHeader | None = None

    def read(self, header: SliceHeader) -> tuple[np.ndarray, np.ndarray | None]:
        """Stored values, indexed (column, row), and where they are padding (None if nowhere).

        Bits above BitsStored (old overlays) are dropped and the sign is extended. A Modality LUT is applied: what
        comes back then are its values.

        Raises:
            ScanFileError: If the pixels are damaged, cut short or compressed in a way that no installed decoder reads.
        """
        path, syntax = header.path, "an unknown transfer syntax"
        try:
            with discreet():
                dataset = self._open(header)
                syntax = dataset.file_meta.TransferSyntaxUID.name
                _require_bytes(dataset, header)
                stored = decode(dataset, header)
                stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
                padded = None if header.padding is None else padded_pixels(stored, *header.padding)
                if header.has_lut:
                    stored = _through_lut(stored, dataset, header)
        except (ScanFileError, MemoryError):
            raise
        except Exception as error:  # decoders raise nearly anything on damaged files, and may quote them
            raise ScanFileError(
                f"{path}: the pixels ({syntax}) cannot be decoded ({type(error).__name__}); the file is damaged, or "
                "of a variant that the installed decoders do not know. Try it in another viewer."
            ) from None
        expected = (header.rows, header.columns)
        if stored.shape != expected or stored.dtype != header.dtype:
            raise ScanFileError(
                f"{path}: the pixels are {stored.dtype.name} of shape {stored.shape}; expected {header.dtype.name} of "
                f"{expected}. The header does not fit the pixels."
            )
        return stored.T, None if padded is None else padded.T

    def _open(self, header: SliceHeader) -> pydicom.Dataset:
        if self._dataset is None or self._header is None or self._header.path != header.path:
            self._dataset = parse(header.path, pixels=True)
            self._header = header
        assert self._dataset is not None
        return self._dataset


def _require_bytes(dataset: pydicom.Dataset, header: SliceHeader) -> None:
    needed = header.frames * header.rows * header.columns * (int(dataset.BitsAllocated) // 8)
    held, compressed = len(dataset.get("PixelData", b"")), dataset.file_meta.TransferSyntaxUID.is_compressed
    if held == 0 or (held < needed and not compressed):
        raise ScanFileError(f"{header.path}: PixelData holds {held} bytes of {needed}; the file is cut short.")
    if not compressed and any(dataset.PixelData[needed + needed % 2 :]):
        raise ScanFileError(
            f"{header.path}: PixelData holds {held} bytes, but its size claims {needed}; the header is damaged."
        )


def _through_lut(stored: np.ndarray, dataset: pydicom.Dataset, header: SliceHeader) -> np.ndarray:
    """The values that the Modality LUT gives (PS3.3 C.11.1.1); pydicom's own overflows on 16-bit signed images."""
    item = dataset.ModalityLUTSequence[0]
    entries, first = (item.LUTDescriptor[0] or 2**16), item.LUTDescriptor[1]
    if dataset.PixelRepresentation == 1 and first >= 2**15:
        first -= 2**16  # written as unsigned
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        table = np.frombuffer(data, np.uint8 if len(data) == entries + entries % 2 else f"{order}u2")[:entries]
    else:
        table = np.asarray(data)
    if len(table) != entries or table.max() >= 2**header.bits:
        raise ScanFileError(
            f"{header.path}: the Modality LUT holds {len(table)} values of {entries}, or values beyond {header.bits} "
            "bits; correct the header."
        )
    return table.astype(header.dtype)[np.clip(stored.astype(np.int64) - first, 0, entries - 1)]
