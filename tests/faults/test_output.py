"""Rows 53 to 60 and 62 of the table in tests/README.md: what cannot be written, by the command line."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adl_monai.data.io import read_volume, write_volume
from adl_monai.errors import AdlError
from tests.data.conftest import build_nifti
from tests.streaming import stand_in

from .conftest import WORKING, Command, Refused, assert_a_signal_leaves_only, contents


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return build_nifti(tmp_path / "scan.nii", np.random.default_rng(0).integers(0, 90, (16, 16, 16)).astype(np.uint8))


def test_row_53_a_full_disk(scan: Path, tmp_path: Path, refused: Refused) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        refused(5, ["out.nii", "could not be written (File too large)"], "infer", scan, "-o", "out.nii", early=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def a_file_as_folder(tmp_path: Path, scan: Path) -> str:
    (tmp_path / WORKING / "file").touch()
    return "file/out.nii"


def an_existing_file(tmp_path: Path, scan: Path) -> str:
    (tmp_path / WORKING / "out.nii").write_bytes(b"precious")
    return "out.nii"


def a_link(tmp_path: Path, scan: Path) -> str:
    (tmp_path / WORKING / "link.nii").symlink_to(scan)
    return "link.nii"


def a_hard_link(tmp_path: Path, scan: Path) -> str:
    os.link(scan, tmp_path / WORKING / "hard.nii")
    return "hard.nii"


OUTPUTS: list[tuple[str, Callable[[Path, Path], str], list[str], list[str]]] = [
    ("54-folder-is-a-file", a_file_as_folder, [], ["file", "cannot be made", "choose another -o"]),
    ("54-exists", an_existing_file, [], ["out.nii exists", "--overwrite", "another -o"]),
    ("54-format", lambda folder, scan: "out.jpg", [], ["out.jpg"]),
    ("55-same", lambda folder, scan: str(scan), ["--overwrite"], ["is an input", "another folder"]),
    ("55-link", a_link, ["--overwrite"], ["is an input", "another folder"]),
    ("55-hard-link", a_hard_link, ["--overwrite"], ["is the input", "or a link to it", "another name"]),
]


@pytest.mark.parametrize(
    "make, options, words", [case[1:] for case in OUTPUTS], ids=[f"row_{case[0]}" for case in OUTPUTS]
)
def test_an_output_is_refused_before_inference(
    scan: Path,
    tmp_path: Path,
    refused: Refused,
    make: Callable[[Path, Path], str],
    options: list[str],
    words: list[str],
) -> None:
    (tmp_path / WORKING).mkdir(exist_ok=True)
    refused(5, words, "infer", scan, "-o", make(tmp_path, scan), *options)


def test_row_54_a_folder_that_may_not_be_written(scan: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.access  # tests may run as root, who may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode, **named: mode != os.W_OK and allowed(path, mode, **named))
    refused(5, ["its folder does not exist or is not writable", "choose another"], "infer", scan, "-o", "out.nii")


def test_row_54_an_output_that_is_a_folder_takes_the_scan(scan: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / WORKING / "out.nii").mkdir()
    assert command("infer", scan, "-o", "out.nii").code == 0
    assert [path.name for path in (tmp_path / WORKING / "out.nii").iterdir()] == ["scan_denoised.nii"]


def test_row_56_two_inputs_of_one_name(scan: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / scan.name).write_bytes(scan.read_bytes())
    refused(2, ["same name", "scan_denoised.nii", "-o folders"], "infer", scan, tmp_path / "sub" / scan.name)


def write(source: Path, outputs: list[Path], start: Any, results: Any) -> None:
    volume = read_volume(source)
    for output in outputs:
        start.wait()
        try:
            write_volume(output, volume.array, like=source, affine=volume.affine, overwrite=False)
            results.put((output, 0))
        except AdlError as error:
            results.put((output, error.exit_code))


def test_row_57_of_two_writers_one_wins_whole(scan: Path, tmp_path: Path) -> None:
    # Not forked: a process with torch's threads in it may not go on after a fork.
    context = multiprocessing.get_context("spawn")
    outputs = [tmp_path / f"out{attempt}.nii" for attempt in range(3)]
    start, results = context.Barrier(2), context.Queue()
    writers = [context.Process(target=write, args=(scan, outputs, start, results), daemon=True) for _ in range(2)]
    for writer in writers:
        writer.start()
    codes = sorted(results.get(timeout=240) for _ in outputs * 2)
    for writer in writers:
        writer.join()
    assert codes == [(output, code) for output in outputs for code in (0, 5)]
    assert all(output.read_bytes() == scan.read_bytes() for output in outputs)
    assert len(contents(tmp_path)) == 4


def test_row_58_integers_saturate_and_are_counted(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)  # as no model leaves the range of its scan
    stored = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (16, 16, 16), p=[0.9, 0.1])
    scan = build_nifti(tmp_path / "scan.nii", stored)
    outcome = command("infer", scan, "-o", tmp_path / "out.nii")
    assert outcome.code == 0
    exact = command("infer", scan, "-o", tmp_path / "exact.nii", "--dtype", "float32")
    assert exact.code == 0
    values = read_volume(tmp_path / "exact.nii").array
    outside = int(((np.rint(values) < 0) | (np.rint(values) > 255)).sum())
    assert outside > 0, "this scan no longer drives the model out of range: make another"
    assert outcome.out.splitlines() == [str(tmp_path / "out.nii")], "standard output is paths alone"
    assert f"{outside} voxels do not fit uint8 and were saturated" in outcome.err
    assert np.array_equal(read_volume(tmp_path / "out.nii").array, np.clip(np.rint(values), 0, 255))


@pytest.mark.parametrize("name", ["SCAN.NII.GZ", "müller 雪 $x.nii.gz", "a b@c%.nii"])
def test_row_59_any_name_works(tmp_path: Path, command: Command, name: str) -> None:
    scan = build_nifti(tmp_path / name, np.arange(512, dtype=np.int16).reshape(8, 8, 8))
    outcome = command("infer", scan, "-o", "out folder")
    assert (outcome.code, outcome.err) == (0, "")
    stem, _, suffix = name.partition(".")
    assert [path.name for path in (tmp_path / WORKING / "out folder").iterdir()] == [f"{stem}_denoised.{suffix}"]


def test_row_59_a_name_too_long(tmp_path: Path, refused: Refused) -> None:
    refused(3, ["aaa", "File name too long"], "infer", "a" * 5000 + ".nii")
    scan = build_nifti(tmp_path / ("b" * 247 + ".nii"), np.arange(512, dtype=np.int16).reshape(8, 8, 8))
    refused(5, ["bbb", "too long a name", "rename"], "infer", scan)


SLOW_WRITER = """
import os, sys, time
from adl_monai import cli
sync = os.fsync
def slow(descriptor):
    sync(descriptor)
    open("writing", "w").close()
    time.sleep(60)
os.fsync = slow
sys.argv = ["adl-monai", "infer", sys.argv[1], "-o", "out.nii", "--noise-floor", "remove"]
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_row_60_a_signal_while_writing_leaves_nothing(scan: Path, tmp_path: Path, number: int, code: int) -> None:
    work = tmp_path / WORKING
    work.mkdir()
    process = subprocess.Popen([sys.executable, "-c", SLOW_WRITER, str(scan)], cwd=work, stderr=subprocess.PIPE)
    assert_a_signal_leaves_only("writing", process, work, number, code)


def out_of_memory(*arguments: Any, **named: Any) -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ...")


def test_row_62_too_little_memory(scan: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adl_monai.inferers.unet_stream.UNetStream.push", out_of_memory)
    refused(7, ["scan.nii", "not enough memory", "--device cpu"], "infer", scan, "-o", "out.nii", early=False)
