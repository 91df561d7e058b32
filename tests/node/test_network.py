"""Addresses and titles, given by hand."""

from __future__ import annotations

import pytest

from adl_monai.errors import UsageError
from adl_monai.node.network import Peer, application_entity_title


def test_addresses() -> None:
    assert Peer.parse("localhost:4242:ORTHANC") == Peer("localhost", 4242, "ORTHANC")
    assert Peer.parse("[::1]:104:A B") == Peer("::1", 104, "A B")


@pytest.mark.parametrize(
    "text",
    [
        "", "host", "host:104", "host::AET", ":104:AET", "host:0:AET", "host:65536:AET", "host:x:AET", "::1:104:A",
        "2001:470::3:104:A",
    ],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match=r"HOST:PORT:AET.*\[::1\]:4242:ORTHANC"):
        Peer.parse(text)


@pytest.mark.parametrize("title", ["", " ", " A", "A" * 17, "A\\B", "Ä", "A\nB"])
def test_what_is_no_title(title: str) -> None:
    with pytest.raises(UsageError, match="AE title"):
        application_entity_title(title)
    assert application_entity_title("A" * 16) == "A" * 16
