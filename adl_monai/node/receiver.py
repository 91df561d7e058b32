"""The receiving side: answers C-ECHO, and C-STORE with success only once the image is safe in the spool."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from pydicom.uid import AllTransferSyntaxes, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from adl_monai.data.derivation import names_this_tool
from adl_monai.data.dicom.decoders import has_decoder
from adl_monai.data.dicom.parse import discreet, parse
from adl_monai.errors import UsageError
from adl_monai.node.arrivals import STALE, Arrivals
from adl_monai.node.network import silent_pynetdicom
from adl_monai.node.spool import Spool, SpoolFullError

logger = logging.getLogger(__name__)

SUCCESS, OUT_OF_RESOURCES, MISMATCH, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xA900, 0xC000
STORAGE = [
    "CTImageStorage", "EnhancedCTImageStorage", "LegacyConvertedEnhancedCTImageStorage", "MRImageStorage",
    "EnhancedMRImageStorage", "LegacyConvertedEnhancedMRImageStorage", "PositronEmissionTomographyImageStorage",
    "EnhancedPETImageStorage", "LegacyConvertedEnhancedPETImageStorage", "ComputedRadiographyImageStorage",
    "DigitalXRayImageStorageForPresentation", "DigitalXRayImageStorageForProcessing", "SecondaryCaptureImageStorage",
]  # fmt: skip
_TAGS = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Rows", "Columns", "ContributingEquipmentSequence"]
_IDLE = STALE - 10  # seconds after which a silent association is ended, while it still holds its series
_ASSOCIATIONS = 10
_REMEMBERED = 10_000  # series refused for want of room


@dataclass
class _Visit:
    """What one association brought: the series, those refused for want of room, and images whose series is unknown.

    ``said`` counts what was logged of it.
    """

    series: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    unplaced: set[str] = field(default_factory=set)
    said: Counter[str] = field(default_factory=Counter)


class _RefusedError(Exception):
    """``needed``: whether its series would be incomplete without the image."""

    def __init__(self, status: int, reason: str, needed: bool = True) -> None:
        super().__init__(reason)
        self.status, self.needed = status, needed


def transfer_syntaxes() -> list[str]:
    """Those that can be decoded here: a sender that is refused one may offer another."""
    plain = (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
    return [str(syntax) for syntax in AllTransferSyntaxes if syntax in plain or has_decoder(syntax)]


class Receiver:
    """Takes images into a spool.

    Args:
        spool: Where they go.
        arrivals: Is told of them.
        aet: Our AE title; associations that call another are rejected.
        allow: AE titles that may call; none given lets any call.
        address: Host and port to listen at; port 0 takes a free one.

    Raises:
        UsageError: If pynetdicom is missing, or the address cannot be listened at.
    """

    def __init__(
        self, spool: Spool, arrivals: Arrivals, aet: str, allow: tuple[str, ...], address: tuple[str, int]
    ) -> None:
        self.spool, self.arrivals = spool, arrivals
        self._visits: WeakKeyDictionary[threading.Thread, _Visit] = WeakKeyDictionary()
        self._turned_away: dict[str, set[str]] = {}
        pynetdicom = silent_pynetdicom()
        entity = pynetdicom.AE(ae_title=aet)
        entity.require_called_aet = True
        entity.require_calling_aet = list(allow)
        entity.maximum_associations = _ASSOCIATIONS
        entity.network_timeout = _IDLE
        entity.add_supported_context(pynetdicom.sop_class.Verification)
        for name in STORAGE:
            entity.add_supported_context(getattr(pynetdicom.sop_class, name), transfer_syntaxes())
        events = pynetdicom.evt
        handlers = [
            (events.EVT_C_STORE, self._on_store), (events.EVT_REJECTED, _on_rejected),
            (events.EVT_RELEASED, self._on_end), (events.EVT_ABORTED, self._on_end),
        ]  # fmt: skip
        try:
            self._server = entity.start_server(address, block=False, evt_handlers=handlers)
        except OSError as error:
            raise UsageError(
                f"cannot listen at {address[0]}:{address[1]} ({error.strerror or error}); choose another --port or "
                "--host."
            ) from error

    @property
    def address(self) -> tuple[str, int]:
        """Host and port it listens at."""
        host, port = self._server.socket.getsockname()[:2]
        return str(host), int(port)

    def close(self) -> None:
        """Listen no more, and abort open associations: what was not answered yet, was not accepted."""
        self._server.shutdown()
        for association in self._server.active_associations:
            association.abort()

    def _on_store(self, event: Any) -> int:
        visit = self._visits.setdefault(event.assoc, _Visit())
        temporary = self.spool.temporary()
        try:
            return self._store(event, visit, temporary)
        except _RefusedError as refused:
            _say_once(visit, logging.WARNING, f"an image was refused (status 0x{refused.status:04X}): {refused}")
            return refused.status
        except Exception as error:
            self._count_missing(visit, self.spool.name(str(event.request.AffectedSOPInstanceUID)))
            status, reason = CANNOT_UNDERSTAND, f"unexpected {type(error).__name__}"
            if isinstance(error, OSError):
                status, reason = OUT_OF_RESOURCES, f"the spool cannot be written ({error.strerror})"
            _say_once(visit, logging.ERROR, f"an image was refused (status 0x{status:04X}): {reason}")
            return status
        finally:
            temporary.unlink(missing_ok=True)

    def _on_end(self, event: Any) -> None:
        visit = self._visits.get(event.assoc, _Visit())
        for line, count in visit.said.items():
            if count > 1:
                logger.warning("%d times in this association: %s", count, line)
        visit.said.clear()
        if visit.series and not event.assoc.is_released:
            logger.warning(
                "an association ended without a release: its %d series wait up to %.0f minutes for more images",
                len(visit.series), self.arrivals.patience / 60,
            )  # fmt: skip

    def _store(self, event: Any, visit: _Visit, temporary: Path) -> int:
        data, uid = event.encoded_dataset(), str(event.request.AffectedSOPInstanceUID)
        image = self.spool.name(uid)
        if not self.spool.has_room(len(data)):
            self._count_missing(visit, image)
            raise _RefusedError(OUT_OF_RESOURCES, "the disk is nearly full; make room on it")
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            series = self._identify(temporary, uid, str(event.request.AffectedSOPClassUID))
        except _RefusedError as refused:
            if refused.needed:
                self._count_missing(visit, image)
            raise
        with self.spool.lock:
            try:
                if series in visit.refused:
                    raise SpoolFullError
                self.arrivals.note(series, event.assoc)
                found = self.spool.store(series, image, temporary)
            except SpoolFullError:
                visit.refused.add(series)  # all of it: half a series would look like a whole one
                self._turn_away(series, image)
                reason = f"{self.spool.limit} series are waiting (--max-series), no more are taken"
                raise _RefusedError(OUT_OF_RESOURCES, reason) from None
            visit.unplaced.discard(image)
            if series not in visit.series:
                visit.series.add(series)
                for absent in visit.unplaced | self._turned_away.pop(series, set()):
                    self.spool.refuse(series, absent)
        if found == "replaced":
            _say_once(visit, logging.WARNING, "an image came again with other contents; the later one counts")
        return SUCCESS

    def _identify(self, path: Path, uid: str, kind: str) -> str:
        """The spool's name for the series of an image."""
        try:
            with discreet():
                header = parse(path, pixels=False, tags=_TAGS)
        except Exception as error:  # of nearly any kind, and its text may quote the data
            raise _RefusedError(CANNOT_UNDERSTAND, f"its header is damaged ({type(error).__name__})") from None
        if header is None:
            raise _RefusedError(MISMATCH, "it is not an image")
        if str(header.get("SOPInstanceUID")) != uid or str(header.get("SOPClassUID")) != kind:
            raise _RefusedError(MISMATCH, "its SOP class or instance UID is not the one that was announced")
        if not header.get("SeriesInstanceUID"):
            raise _RefusedError(MISMATCH, "it has no SeriesInstanceUID")
        if names_this_tool(header):
            raise _RefusedError(MISMATCH, "it was denoised by adl_monai already; do not send results back", False)
        return self.spool.name(str(header.SeriesInstanceUID))

    def _turn_away(self, series: str, image: str) -> None:
        """Remember it beyond the association: another one may bring the rest of the series."""
        self.spool.refuse(series, image)
        self._turned_away.setdefault(series, set()).add(image)
        if len(self._turned_away) > _REMEMBERED:
            self._turned_away.pop(next(iter(self._turned_away)))

    def _count_missing(self, visit: _Visit, image: str) -> None:
        """An image was refused whose series is not known: none of this association's is taken to be complete now."""
        visit.unplaced.add(image)
        for series in visit.series:
            self.spool.refuse(series, image)


def _say_once(visit: _Visit, level: int, line: str) -> None:
    """Log a line once in an association; how often it was meant is said at its end."""
    visit.said[line] += 1
    if visit.said[line] == 1:
        logger.log(level, line)


def _on_rejected(event: Any) -> None:
    caller = event.assoc.requestor
    logger.warning(
        "an association from %s was rejected: it calls %r as %r; see --aet and --allow",
        caller.address, caller.primitive.called_ae_title, caller.ae_title,
    )  # fmt: skip
