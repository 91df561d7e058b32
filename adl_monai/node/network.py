"""Names and addresses of DICOM peers, and the one place where pynetdicom is imported and made to keep silent."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import ModuleType

from adl_monai.errors import UsageError


@dataclass(frozen=True)
class Peer:
    """Where derived series are sent."""

    host: str
    port: int
    aet: str

    def __str__(self) -> str:
        return f"{self.aet} at {self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Peer:
        """Read ``HOST:PORT:AET``; an IPv6 address stands in square brackets.

        Raises:
            UsageError: If it is none.
        """
        host, _, rest = text.rpartition("]:") if text.startswith("[") else text.partition(":")
        port, _, aet = rest.partition(":")
        if ":" in aet and not text.startswith("["):  # an IPv6 address, more likely than such a title
            port = ""
        host = host.removeprefix("[")
        if not host or not aet or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise UsageError(
                f"{text!r} is not HOST:PORT:AET, such as localhost:4242:ORTHANC (ports are 1 to 65535; an IPv6 address "
                "stands in square brackets: [::1]:4242:ORTHANC)."
            )
        return cls(host, int(port), application_entity_title(aet))


def application_entity_title(text: str) -> str:
    """Check an application entity title: PS3.5's AE, without spaces around it.

    Raises:
        UsageError: If it is none.
    """
    if not text.strip() or text != text.strip() or len(text) > 16 or "\\" in text or not text.isascii():
        raise UsageError(f"{text!r} is no AE title; expected 1 to 16 ASCII characters, without a backslash.")
    if not text.isprintable():
        raise UsageError(f"{text!r} is no AE title; control characters are not allowed.")
    return text


def silent_pynetdicom() -> ModuleType:
    """pynetdicom, which logs nothing from now on: it quotes UIDs and data sets. What matters is logged by this package.

    Raises:
        UsageError: If it is not installed.
    """
    try:
        import pynetdicom
    except ImportError as error:
        raise UsageError(
            "the DICOM node needs pynetdicom, which is not installed; run: pip install pynetdicom"
        ) from error
    pynetdicom._config.LOG_HANDLER_LEVEL = "none"
    pynetdicom._config.STORE_SEND_CHUNKED_DATASET = True  # files are sent as they are, not decoded and encoded
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    return pynetdicom
