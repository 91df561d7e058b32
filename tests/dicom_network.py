"""DICOM peers for tests: an archive and a sender made with pynetdicom, and the listener in a process of its own."""

from __future__ import annotations

import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless
from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import CTImageStorage, Verification

SYNTAXES = [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless]


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value of the condition; the test fails if there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
    return value


class Archive:
    """Takes CT images; each is answered with the next of ``answers``, then with success."""

    def __init__(self, aet: str = "ARCHIVE", port: int = 0, echo: bool = False) -> None:
        self.answers: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.images: list[pydicom.Dataset] = []
        self.syntaxes: set[str] = set()
        self.callers: set[str] = set()
        entity = AE(ae_title=aet)
        entity.require_called_aet = True
        entity.add_supported_context(CTImageStorage, SYNTAXES)
        if echo:
            entity.add_supported_context(Verification)
        self.server = entity.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._take)]
        )
        self.port = self.server.socket.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}:{aet}"

    def _take(self, event: Any) -> int:
        answer = 0 if self.answers.empty() else self.answers.get()
        if answer == 0:
            self.images.append(event.dataset)
            self.syntaxes.add(str(event.context.transfer_syntax))
            self.callers.add(event.assoc.requestor.ae_title)
        return answer


@contextmanager
def archive(aet: str = "ARCHIVE", port: int = 0, echo: bool = False) -> Iterator[Archive]:
    peer = Archive(aet, port, echo)
    try:
        yield peer
    finally:
        peer.server.shutdown()


@contextmanager
def calling(
    port: int,
    called: str = "ADL",
    caller: str = "SENDER",
    syntax: str = ExplicitVRLittleEndian,
    kind: str = CTImageStorage,
) -> Iterator[Any]:
    """An association, released at the end; it may be a rejected one."""
    entity = AE(ae_title=caller)
    entity.add_requested_context(kind, syntax)
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", port, ae_title=called)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def store(association: Any, path: Path) -> int:
    """Send a file as it is; the status, -1 where there is none."""
    _config.STORE_SEND_CHUNKED_DATASET = True
    try:
        return int(association.send_c_store(path).get("Status", -1))
    except RuntimeError:  # the association ended
        return -1


def send(port: int, paths: Sequence[Path], **options: Any) -> list[int]:
    """Send files over one association; the statuses, none if it was rejected."""
    with calling(port, **options) as association:
        if not association.is_established:
            return []
        return [store(association, path) for path in paths]


class Listening:
    """``adl-monai listen`` in a process; ``lines`` grows with what it says."""

    def __init__(self, *options: object) -> None:
        command = [sys.executable, "-m", "adl_monai", "listen", "--port", "0", "--aet", "ADL", *map(str, options)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        self.port = int(self.wait_for(r"listening at 127\.0\.0\.1:(\d+) as ADL")[1])

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str) -> re.Match[str]:
        def found() -> re.Match[str] | None:
            match = re.search(pattern, self.text)
            assert match or self.process.poll() is None, self.text
            return match

        return wait_until(found)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def listening(*options: object) -> Iterator[Listening]:
    process = Listening(*options)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.end(signal.SIGKILL)
