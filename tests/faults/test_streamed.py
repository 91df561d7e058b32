"""Rows of the table in tests/README.md again, for volumes that are denoised box by box."""

from __future__ import annotations

import gzip
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from adl_monai.inferers import TiledInferer
from tests.data.conftest import build_nifti, oblique_affine
from tests.streaming import stand_in

from .conftest import WORKING, Command, Refused, assert_a_signal_leaves_only, assert_warned_and_kept, contents
from .test_files import REFUSED, WARNED, Make, voxels


@pytest.fixture(autouse=True)
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No volume fits into memory, and nothing may be denoised there."""
    stand_in(monkeypatch)
    monkeypatch.setattr("adl_monai.memory.available_memory", lambda: 0)

    def forbidden(*given: Any) -> None:
        raise AssertionError("denoised in memory")

    monkeypatch.setattr(TiledInferer, "__call__", forbidden)


@pytest.mark.parametrize("make, words", [case[1:] for case in REFUSED], ids=[f"row_{case[0]}" for case in REFUSED])
def test_a_bad_file_is_refused(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, make: Make, words: list[str]
) -> None:
    def forbidden(*given: Any) -> None:
        raise AssertionError("the network ran before the refusal")

    monkeypatch.setattr(TiledInferer, "stream", forbidden)
    path = make(tmp_path)
    refused(3, [str(path), *words], "infer", path)


def test_row_2_a_flipped_bit_of_a_gz(tmp_path: Path, refused: Refused) -> None:
    path = build_nifti(tmp_path / "scan.nii.gz", voxels())
    damaged = bytearray(path.read_bytes())
    damaged[-6] ^= 1  # of the checksum
    path.write_bytes(damaged)
    refused(3, [str(path), "gzip", "CRC"], "infer", path)


def test_row_11_a_constant_image_comes_back_with_a_warning(tmp_path: Path, command: Command) -> None:
    path = build_nifti(tmp_path / "scan.nii", np.full((9, 10, 7), 42, np.int16), scale=(0.37, 11.5))
    outcome = command("infer", path, "-o", tmp_path / "out.nii")
    assert outcome.code == 0
    assert "scan.nii is constant and is written unchanged" in outcome.err
    assert (tmp_path / "out.nii").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("order", ["<", ">"])
def test_rows_15_17_and_18_scale_byte_order_and_geometry_are_kept(tmp_path: Path, command: Command, order: str) -> None:
    path = build_nifti(
        tmp_path / "scan.nii.gz", voxels(), oblique_affine(), codes=(4, 2), scale=(0.5, -20.0), order=order, units=18
    )
    assert command("infer", path, "-o", tmp_path / "same.nii.gz", "--strength", "0").code == 0
    assert gzip.decompress((tmp_path / "same.nii.gz").read_bytes()) == gzip.decompress(path.read_bytes())
    assert command("infer", path, "-o", tmp_path / "out.nii.gz").code == 0
    before, after = nib.load(path), nib.load(tmp_path / "out.nii.gz")
    assert after.header.binaryblock == before.header.binaryblock
    assert 0 < np.abs(after.get_fdata() - before.get_fdata()).max() < 20


@pytest.mark.parametrize("options, words", [case[1:] for case in WARNED], ids=[f"row_{case[0]}" for case in WARNED])
def test_an_odd_header_is_warned_of_and_kept(
    tmp_path: Path, command: Command, options: dict[str, Any], words: list[str]
) -> None:
    path = build_nifti(tmp_path / "scan.nii", voxels(), **options)
    assert_warned_and_kept(command, path, words)


@pytest.mark.parametrize(
    "source, output", [("scan.nii", "out.nii"), ("scan.nii", "out.nii.gz"), ("scan.nii.gz", "o.nii")]
)
@pytest.mark.parametrize("cut", [1, 2])
def test_row_53_a_full_disk(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, source: str, output: str, cut: int
) -> None:
    """Whichever file does not fit: the output, the inflated scan, or the voxels that are to be compressed."""
    stand_in(monkeypatch, cut)
    monkeypatch.setattr(TiledInferer, "__call__", None)
    noise = np.random.default_rng(0).integers(-9999, 9999, (16, 16, 16)).astype(np.int16)
    path = build_nifti(tmp_path / source, noise)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        refused(5, [output, "could not be written (File too large)"], "infer", path, "-o", output, early=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


INTERRUPTED = """
import sys, time
from pathlib import Path
import pytest
from adl_monai import cli
from adl_monai.data.nifti import sink as nifti_sink
from tests import streaming

patch = pytest.MonkeyPatch()
streaming.stand_in(patch, int(sys.argv[3]))
patch.setattr("adl_monai.memory.available_memory", lambda: 0)
if sys.argv[4] == "network":
    brighter = streaming.brighter
    calls = []
    def slow(values):
        calls.append(1)
        if len(calls) == 3:
            Path("running").touch()
            time.sleep(60)
        return brighter(values)
    patch.setattr(streaming, "brighter", slow)
else:
    def sync(path):
        Path("running").touch()
        time.sleep(60)
    patch.setattr(nifti_sink, "sync", sync)
sys.argv = ["adl-monai", "infer", sys.argv[1], "-o", sys.argv[2]]
cli.main()
"""


@pytest.mark.parametrize(
    "number, code, cut, place",
    [(signal.SIGINT, 130, 1, "network"), (signal.SIGTERM, 143, 2, "network"), (signal.SIGTERM, 143, 1, "disk")],
)
def test_row_60_a_signal_leaves_nothing(tmp_path: Path, number: int, code: int, cut: int, place: str) -> None:
    scan = build_nifti(tmp_path / "scan.nii.gz", voxels(shape=(16, 16, 40)))
    work = tmp_path / WORKING
    work.mkdir()
    arguments = [sys.executable, "-c", INTERRUPTED, str(scan), "out.nii.gz", str(cut), place]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(arguments, cwd=work, env=environment, stderr=subprocess.PIPE)
    assert_a_signal_leaves_only("running", process, work, number, code)


@pytest.mark.skipif(sys.platform != "linux", reason="only there a file can be without a name from its start")
def test_a_kill_leaves_no_inflated_scan(tmp_path: Path) -> None:
    """Of a killed program the unfinished output stays, hidden, but not the much larger raw voxels."""
    scan = build_nifti(tmp_path / "scan.nii.gz", np.zeros((64, 64, 60), np.int16) + np.arange(60, dtype=np.int16))
    work = tmp_path / WORKING
    work.mkdir()
    arguments = [sys.executable, "-c", INTERRUPTED, str(scan), "out.nii.gz", "2", "network"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(arguments, cwd=work, env=environment)
    deadline = time.monotonic() + 120
    while not (work / "running").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait(60)
    assert sum(len(content or b"") for content in contents(work).values()) < 64 * 64
