"""The node as its users start it: a process that takes series and hands derived ones on, and survives being killed."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pydicom
import pytest
import torch
from click.testing import CliRunner

from adl_monai.cli import cli
from adl_monai.errors import OutputError, UsageError
from adl_monai.stages.listen import listen
from tests.data.conftest import build_series
from tests.dicom_network import archive, listening, send, wait_until

Model = Callable[..., Path]


@pytest.fixture
def model(identity_model: Model) -> Path:
    return identity_model(3, 0.3)


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    return build_series(tmp_path / "CT", [0, 2, 4, 6], SeriesInstanceUID="1.2.777.1", StudyInstanceUID="1.2.777")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def options(tmp_path: Path, model: Path, **given: Any) -> list[object]:
    values = {"spool": tmp_path / "spool", "model": model, "quiet_time": 0.3, "device": "cpu", **given}
    return [part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", value)]


def test_a_series_goes_through_and_nothing_tells_of_the_patient(
    tmp_path: Path, model: Path, series: list[Path]
) -> None:
    bad = build_series(tmp_path / "bad", [0, 2, 9], SeriesInstanceUID="1.2.777.2")
    with archive() as peer, listening(*options(tmp_path, model, forward=peer.address, out=tmp_path / "out")) as node:
        assert send(node.port, series) == [0] * 4
        node.wait_for(r"series 1: sent to ARCHIVE at 127\.0\.0\.1:\d+ \(4 images\)")
        assert send(node.port, bad) == [0] * 3, "each by itself is good"
        node.wait_for("series 2: .*uneven slices")
        assert send(node.port, series) == [0] * 4
        node.wait_for("series 3: came again and was denoised before; dropped")
        assert node.end() == 143, node.text
        assert node.text.endswith("interrupted")
        assert "Traceback" not in node.text
    sources = {str(header.SOPInstanceUID): header for header in map(pydicom.dcmread, series)}
    assert len(peer.images) == 4
    for image in peer.images:
        source = sources.pop(image.SourceImageSequence[0].ReferencedSOPInstanceUID)
        assert (image.StudyInstanceUID, image.PatientID) == ("1.2.777", "SECRET-ID")
        assert image.SeriesInstanceUID != source.SeriesInstanceUID
        assert image.ImagePositionPatient == source.ImagePositionPatient
        assert image.PixelData != source.PixelData
    assert peer.syntaxes == {"1.2.840.10008.1.2.1"}
    written = [pydicom.dcmread(path) for path in sorted((tmp_path / "out" / "series_000001").iterdir())]
    assert {image.SOPInstanceUID for image in written} == {image.SOPInstanceUID for image in peer.images}

    spool = tmp_path / "spool"
    assert "2.000 mm elsewhere" in (spool / "failed" / "000002" / "reason.txt").read_text()
    assert len(list((spool / "failed" / "000002" / "source").iterdir())) == 3
    left = [path for path in spool.rglob("*.dcm") if "failed" not in path.parts]
    assert left == [], "nothing of a delivered series stays"
    uids = {str(pydicom.dcmread(path).SOPInstanceUID) for path in [*series, *bad]}
    names = "\n".join(str(path.relative_to(tmp_path)) for path in [*spool.rglob("*"), *(tmp_path / "out").rglob("*")])
    said = node.text + names + (spool / "failed" / "000002" / "reason.txt").read_text()
    said += "".join(path.read_text() for path in (spool / "records").iterdir())
    for secret in ("SECRET", "1.2.777", *uids):
        assert secret not in said


def test_what_was_accepted_survives_a_kill(tmp_path: Path, model: Path) -> None:
    port, series = free_port(), build_series(tmp_path / "CT", range(60))
    given = options(tmp_path, model, forward=f"127.0.0.1:{port}:ARCHIVE", quiet_time=5)
    incoming, statuses = tmp_path / "spool" / "incoming", []
    with listening(*given) as node:
        sender = threading.Thread(target=lambda: statuses.extend(send(node.port, series)))
        sender.start()
        wait_until(lambda: len(list(incoming.rglob("*.dcm"))) >= 10)
        node.end(signal.SIGKILL)
        sender.join()
    sent = zip(series, statuses, strict=True)
    accepted = {pydicom.dcmread(path).SOPInstanceUID for path, status in sent if status == 0}
    kept = {pydicom.dcmread(path).SOPInstanceUID for path in incoming.rglob("*.dcm")}
    assert 9 <= len(accepted) < 60, "killed while it received"
    assert accepted <= kept
    with listening(*given) as node:  # its peer is away
        node.wait_for("1 of them were arriving when this program ended")
        assert send(node.port, series) == [0] * 60
        node.wait_for("series 1: 60 images received")
        node.wait_for("series 1: not delivered .*next try in 2 s")
        node.end(signal.SIGKILL)
    derived = tmp_path / "spool" / "jobs" / "000001" / "derived"
    uids = {str(pydicom.dcmread(path).SOPInstanceUID) for path in derived.iterdir()}
    with listening(*given) as node:
        node.wait_for("1 series wait in the spool")
        node.wait_for("series 1: not delivered")
        with archive(port=port) as peer:
            node.wait_for("series 1: sent to ARCHIVE")
            wait_until(lambda: not derived.exists())
        assert "denoised" not in node.text, "that was done before"
        assert node.end(signal.SIGINT) == 130
    assert {str(image.SOPInstanceUID) for image in peer.images} == uids
    assert len(uids) == 60


def test_a_series_is_denoised_again_by_a_model_that_learned_more(
    tmp_path: Path, model: Path, series: list[Path]
) -> None:
    given = options(tmp_path, model, out=tmp_path / "out")
    weights = model / "models" / "model.pt"
    for number in (1, 2):
        with listening(*given) as node:
            assert send(node.port, series) == [0] * 4
            node.wait_for(f"series {number}: (written to|.*dropped)")
            assert "dropped" not in node.text
            assert node.end() == 143
        torch.save({name: value * 1.5 for name, value in torch.load(weights, weights_only=True).items()}, weights)


def test_what_it_uses_and_when(tmp_path: Path, series: list[Path]) -> None:
    with listening("--spool", tmp_path / "spool", "--out", tmp_path / "out", "--device", "cpu") as node:
        assert send(node.port, series, called="OTHER") == []
        node.wait_for("rejected")
        assert node.end() == 143
    assert node.lines[0].endswith("model adl3d (volumes) or adl2d (thick slices, single images)")
    assert "WARNING: an association" in node.lines[1]
    for line in node.lines[:2]:
        assert datetime.fromisoformat(line.split()[0]).tzinfo is not None


def test_a_full_spool_says_so(tmp_path: Path, model: Path, series: list[Path]) -> None:
    other = build_series(tmp_path / "other", [0, 2], SeriesInstanceUID="1.2.777.3")
    given = options(tmp_path, model, out=tmp_path / "out", max_series=1, quiet_time=2)
    with listening(*given, "--allow", "SENDER") as node:
        assert send(node.port, series) == [0] * 4
        assert send(node.port, other) == [0xA700] * 2
        assert send(node.port, other, caller="STRANGER") == []
        node.wait_for("as 'STRANGER'; see --aet and --allow")
        wait_until(lambda: (tmp_path / "out" / "series_000001").is_dir())
        wait_until(lambda: send(node.port, other) == [0, 0])
        wait_until(lambda: (tmp_path / "out" / "series_000002").is_dir())
    assert len(list((tmp_path / "out" / "series_000002").iterdir())) == 2


class TestRefusals:
    def refuse(self, error: type[Exception], match: str, tmp_path: Path, **given: Any) -> None:
        values = {"port": 0, "aet": "ADL", "out": tmp_path / "out", "spool": tmp_path / "spool", "model": "/no/model"}
        with pytest.raises(error, match=match):
            listen(**{**values, **given})
        assert not (tmp_path / "spool" / "incoming").exists() or "model" in match

    def test_options(self, tmp_path: Path) -> None:
        self.refuse(UsageError, "pass --forward", tmp_path, out=None)
        self.refuse(UsageError, "HOST:PORT:AET", tmp_path, forward="localhost")
        self.refuse(UsageError, "AE title", tmp_path, aet="A" * 17)
        self.refuse(UsageError, "AE title", tmp_path, allow=("GOOD", ""))
        self.refuse(OutputError, "lie in one another", tmp_path, out=tmp_path / "spool" / "out")
        (tmp_path / "file").write_text("")
        self.refuse(OutputError, "cannot be made", tmp_path, out=tmp_path / "file" / "out")
        self.refuse(UsageError, "/no/model", tmp_path)

    def test_a_busy_port(self, tmp_path: Path, model: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            command = ["listen", "--aet", "ADL", "--port", taken.getsockname()[1], "--out", tmp_path / "out"]
            done = CliRunner().invoke(cli, [str(part) for part in [*command, *options(tmp_path, model)]])
        assert isinstance(done.exception, UsageError)
        assert "choose another --port" in str(done.exception)

    def test_without_pynetdicom(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pynetdicom", None)
        self.refuse(UsageError, r"pip install pynetdicom", tmp_path)
