"""dcmtk's sender, our node, and a real archive: Orthanc must hold the derived series in the study of the source."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from tests.dicom_network import listening, wait_until
from tests.dicom_tools import findings, inconsistencies, require_tool

pytestmark = pytest.mark.dicom_server

REAL = Path(str(get_testdata_file("CT_small.dcm"))).parent / "dicomdirtests" / "98892001" / "CT5N"


class Orthanc:
    """Started with a configuration of its own; keeps everything in one folder."""

    def __init__(self, folder: Path) -> None:
        with ExitStack() as stack:
            probes = [stack.enter_context(socket.socket()) for _ in range(2)]
            for probe in probes:
                probe.bind(("127.0.0.1", 0))
            self.http, self.dicom = (probe.getsockname()[1] for probe in probes)
        configuration = {
            "Name": "test", "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
            "Plugins": [], "HttpPort": self.http, "DicomPort": self.dicom, "DicomAet": "ORTHANC",
            "DicomCheckCalledAet": True, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
            "DicomAlwaysAllowStore": True,
        }  # fmt: skip
        folder.mkdir()
        (folder / "orthanc.json").write_text(json.dumps(configuration))
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [require_tool("Orthanc"), str(folder / "orthanc.json")], stdout=self.log, stderr=subprocess.STDOUT
        )
        wait_until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, Path(self.log.name).read_text()
        try:
            return bool(self.get("/system"))
        except OSError:
            return False

    def bytes(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=30) as answer:
            return bytes(answer.read())

    def get(self, path: str) -> Any:
        return json.loads(self.bytes(path))

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    require_tool("storescu")
    server = Orthanc(tmp_path / "orthanc")
    yield server
    server.end()


def test_orthanc_holds_the_derived_series_in_the_same_study(
    tmp_path: Path, orthanc: Orthanc, identity_model: Callable[..., Path]
) -> None:
    source = Path(shutil.copytree(REAL, tmp_path / "CT"))
    sender = [require_tool("storescu"), "-aet", "SCANNER"]
    files = sorted(map(str, source.iterdir()))
    subprocess.run([*sender, "-aec", "ORTHANC", "127.0.0.1", str(orthanc.dicom), *files], check=True)
    options = ["--spool", tmp_path / "spool", "--model", identity_model(3), "--precision", "fp32"]
    options += ["--forward", f"127.0.0.1:{orthanc.dicom}:ORTHANC", "--quiet-time", 0.5, "--allow", "SCANNER"]
    with listening(*options) as node:
        echo = [require_tool("echoscu"), "-aet", "SCANNER", "-aec", "ADL", "127.0.0.1", str(node.port)]
        subprocess.run(echo, check=True)
        subprocess.run([*sender, "-aec", "ADL", "127.0.0.1", str(node.port), *files], check=True)
        node.wait_for(r"series 1: sent to ORTHANC at 127\.0\.0\.1:\d+ \(5 images\)")
        assert node.end() == 143
    (study,) = orthanc.get("/studies")
    series = [orthanc.get(f"/series/{name}") for name in orthanc.get(f"/studies/{study}")["Series"]]
    assert len(series) == 2
    (derived,) = (one for one in series if "denoised" in one["MainDicomTags"]["SeriesDescription"])
    assert len(derived["Instances"]) == 5

    (tmp_path / "back").mkdir()
    by_uid = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, source.iterdir())}
    before = set().union(*map(findings, source.iterdir()))
    for number, instance in enumerate(derived["Instances"]):
        data = orthanc.bytes(f"/instances/{instance}/file")
        (tmp_path / "back" / f"{number}.dcm").write_bytes(data)
        image = pydicom.dcmread(io.BytesIO(data))
        original = by_uid.pop(image.SourceImageSequence[0].ReferencedSOPInstanceUID)
        assert image.StudyInstanceUID == original.StudyInstanceUID
        assert image.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert np.array_equal(image.pixel_array, original.pixel_array), "the model changes nothing"
        assert not findings(tmp_path / "back" / f"{number}.dcm") - before
    assert inconsistencies([*(tmp_path / "back").iterdir(), *source.iterdir()]) == ""
