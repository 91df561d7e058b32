"""The sending side: a derived series by C-STORE, as Explicit VR Little Endian, the way it lies on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Event

import pydicom
from pydicom.uid import UID, ExplicitVRLittleEndian

from adl_monai.data.dicom.parse import discreet
from adl_monai.node.network import Peer, silent_pynetdicom

TIMEOUT = 60.0  # seconds for each answer of the peer
_ACCEPTED = (0x0000, 0xB000, 0xB006, 0xB007, 0x0111)
"""Success, the warnings of PS3.4 table B.2-1, and "duplicate SOP instance": our own, from an earlier try."""


class DeliveryError(Exception):
    """The peer did not take every image; to be tried again."""


class RefusedError(DeliveryError):
    """The peer says that it will not take an image: trying again seldom helps."""


def send(peer: Peer, aet: str, files: Sequence[Path], stop: Event) -> None:
    """Send files over one association.

    Args:
        peer: To whom.
        aet: Our AE title.
        files: Of a series.
        stop: When set, no further file is sent.

    Raises:
        DeliveryError: Unless the peer accepted every one.
        RefusedError: If it does not take such images.
    """
    pynetdicom = silent_pynetdicom()
    entity = pynetdicom.AE(ae_title=aet)
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = TIMEOUT
    with discreet():
        classes = {str(pydicom.dcmread(path, specific_tags=["SOPClassUID"]).SOPClassUID) for path in files}
    for name in sorted(classes):
        entity.add_requested_context(name, ExplicitVRLittleEndian)
    # Where no context is accepted, no association stands, and some peers do not say why: this one nearly all accept.
    entity.add_requested_context(pynetdicom.sop_class.Verification)
    association = entity.associate(peer.host, peer.port, ae_title=peer.aet)
    rejected = {str(context.abstract_syntax) for context in association.rejected_contexts}
    if not association.is_established and not rejected:
        reason = "rejected the association" if association.is_rejected else "cannot be reached, or ended the call"
        raise DeliveryError(f"{peer} {reason}; check its address and that it knows {aet!r}")
    try:
        for name in sorted(classes & rejected):
            raise RefusedError(f"{peer} does not take {UID(name).name} as Explicit VR Little Endian")
        for number, path in enumerate(files, 1):
            if stop.is_set():
                raise DeliveryError("stopped")
            status = association.send_c_store(path).get("Status")
            if status not in _ACCEPTED:
                answer = "no answer" if status is None else f"status 0x{status:04X}"
                kind = RefusedError if _is_final(status) else DeliveryError
                raise kind(f"{peer} did not accept image {number} of {len(files)} ({answer})")
    except (RuntimeError, ValueError, AttributeError) as error:  # the association ended, or a file cannot be encoded
        raise DeliveryError(f"{peer} ended the association early ({type(error).__name__})") from None
    finally:
        if association.is_established:
            association.release()


def _is_final(status: int | None) -> bool:
    """Not supported, does not match its SOP class, cannot be understood (PS3.7 annex C, PS3.4 table B.2-1)."""
    return status is not None and (status == 0x0122 or status >> 8 == 0xA9 or status >> 12 == 0xC)
