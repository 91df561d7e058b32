"""A volume denoised box by box comes out as one denoised in memory does."""

from __future__ import annotations

import gzip
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from adl_monai.data.normalization import MAX_SAMPLED_VOXELS
from adl_monai.errors import ScanFileError, UsageError
from adl_monai.inferers.unet_stream import UNetStream
from adl_monai.stages import one_scan
from adl_monai.stages.infer import infer
from adl_monai.stages.outputs import Job
from adl_monai.stages.stream import can_stream, denoise_stream
from tests.data.conftest import build_nifti, oblique_affine
from tests.streaming import SHAPE, stand_in, voxels

Model = Callable[..., Path]


def counted_streams(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Fills with the jobs that are denoised box by box."""
    jobs: list[Job] = []

    def counted(job: Job, *arguments: Any, **named: Any) -> int:
        jobs.append(job)
        return denoise_stream(job, *arguments, **named)

    monkeypatch.setattr(one_scan, "denoise_stream", counted)
    return jobs


def both_ways(
    source: Path, folder: Path, model: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[list[Path], list[int]]:
    """The two outputs and their reports: in memory, and box by box (which must really have been taken)."""
    outputs, clipped, calls = [], [], counted_streams(monkeypatch)
    for name, budget in (("memory", 1 << 40), ("stream", 0)):
        (result,) = infer([source], folder / f"{name}{suffix}", model=model, max_memory=budget, **options)
        outputs.append(result.output)
        clipped.append(result.clipped)
    assert len(calls) == 1
    return outputs, clipped


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("int16", {"codes": (4, 2), "units": 2 + 16}, {}),
    ("int16", {"scale": (0.37, -1024.0)}, {"strength": 0.4}),
    ("int16", {"order": ">", "scale": (-0.5, 20.0), "version": 2, "extension": b"a note"}, {}),
    ("uint8", {}, {}),
    ("uint8", {"scale": (0.0, float("nan"))}, {"dtype": "float32"}),
    ("float32", {}, {"strength": 0.7}),
    ("float32", {"order": ">"}, {}),
    ("float64", {"scale": (2.0, 1.0)}, {}),
    ("uint32", {"order": ">"}, {"dtype": "float32", "strength": 0.25}),
]


KINDS = [(".nii", ".nii"), (".nii.gz", ".nii.gz"), (".nii", ".nii.gz"), (".nii.gz", ".nii")]


@pytest.mark.parametrize(
    "dtype, header, options, names, cut",
    [(*CASES[0], names, cut) for names in KINDS for cut in (1, 2)]
    + [(*case, KINDS[index % 2], 1 + index % 3 % 2) for index, case in enumerate(CASES[1:])],
    ids=lambda value: str(value)[:40],
)
def test_the_output_equals_that_of_memory(
    tmp_path: Path,
    identity_model: Model,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    header: dict[str, Any],
    options: dict[str, Any],
    names: tuple[str, str],
    cut: int,
) -> None:
    stand_in(monkeypatch, cut)
    source = build_nifti(tmp_path / f"scan{names[0]}", voxels(dtype), oblique_affine(), **header)
    outputs, clipped = both_ways(source, tmp_path, identity_model(3), names[1], monkeypatch, **options)
    inflate = gzip.decompress if names[1].endswith(".gz") else bytes
    expected, found = (inflate(path.read_bytes()) for path in outputs)
    assert found == expected
    assert found != (gzip.decompress if names[0].endswith(".gz") else bytes)(source.read_bytes())
    assert clipped[0] == clipped[1]
    assert (clipped[0] > 0) is (dtype in ("int16", "uint8") and "dtype" not in options), "nothing was saturated"


@pytest.mark.parametrize("shape", [(1, 1, 40), (40, 1, 1), (7, 9, 1), (37, 61, 3, 1), (5, 6, 64)], ids=str)
def test_odd_shapes(tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch, shape: Any) -> None:
    stand_in(monkeypatch)
    source = build_nifti(tmp_path / "scan.nii", voxels("int16", shape))
    (expected, found), _ = both_ways(source, tmp_path, identity_model(3), ".nii", monkeypatch)
    assert found.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("rest", ["0", "5e-5"])
def test_above_the_sample_the_range_is_the_same_too(
    tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch, rest: str
) -> None:
    """More voxels than are sampled; in the second case nearly all are equal, and the extremes set the range."""
    stand_in(monkeypatch, planes=32)
    shape = (131, 127, 141)
    assert math.prod(shape) > MAX_SAMPLED_VOXELS
    rng = np.random.default_rng(0)
    stored = rng.normal(0, 100, shape).astype(np.float32)
    if float(rest):
        stored[rng.random(shape) > float(rest)] = 7
    source = build_nifti(tmp_path / "scan.nii", stored)
    (expected, found), _ = both_ways(source, tmp_path, identity_model(3), ".nii", monkeypatch)
    assert found.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("cut", [1, 2])
@pytest.mark.parametrize("constant", [False, True])
def test_the_preview_is_the_same(
    tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch, cut: int, constant: bool
) -> None:
    stand_in(monkeypatch, cut)
    stored = np.full(SHAPE, 42, np.int16) if constant else voxels("int16")
    source = build_nifti(tmp_path / "scan.nii", stored)
    outputs, _ = both_ways(source, tmp_path, identity_model(3), ".nii", monkeypatch, preview=True, strength=0.5)
    expected, found = (np.asarray(Image.open(path.with_name(f"{path.stem}_preview.png"))) for path in outputs)
    np.testing.assert_array_equal(found, expected)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_warnings_are_the_same(
    tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in(monkeypatch)
    source = build_nifti(
        tmp_path / "scan.nii.gz",
        voxels("int64") + 2**30,
        np.diag([1e-3, 1e-3, 1e-3, 1.0]),
        codes=(1, 1),
        fields={"qoffset_x": 99.0, "pixdim": [1, 2, 2, 2, 0, 0, 0, 0]},
    )
    with caplog.at_level(logging.WARNING):
        both_ways(source, tmp_path, identity_model(3), ".nii", monkeypatch)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) >= 8
    half = len(said) // 2
    assert said[half:] == [line.replace("memory.nii", "stream.nii") for line in said[:half]]


@pytest.mark.parametrize("budget", [1 << 40, 0])
def test_what_float32_would_flatten_is_refused(
    tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    stand_in(monkeypatch)
    source = build_nifti(tmp_path / "scan.nii.gz", voxels("int64") + 1e13)
    with pytest.raises(ScanFileError, match="the voxels differ"):
        infer([source], tmp_path / "out.nii", model=identity_model(3), max_memory=budget)
    assert not (tmp_path / "out.nii").exists()


def test_which_jobs_can_be_streamed(tmp_path: Path) -> None:
    volume = build_nifti(tmp_path / "a.nii.gz", voxels("int16"))
    image = build_nifti(tmp_path / "b.nii", voxels("int16", (30, 40)))
    assert can_stream(Job(volume, tmp_path / "o.nii"))
    assert not can_stream(Job(volume, tmp_path / "o.mha"))
    assert not can_stream(Job(image, tmp_path / "o.nii"))
    assert not can_stream(Job(tmp_path, tmp_path / "o.nii"))


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most_rows: int) -> list[int]:
    """No scan fits the memory, nor does a plane of more rows; returns the rows of each piece that went through."""
    push, rows = UNetStream.push, []

    def hungry(self: UNetStream, noisy: torch.Tensor | None, last: bool) -> torch.Tensor | None:
        assert noisy is not None
        if noisy.shape[3] > most_rows:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        rows.append(noisy.shape[3])
        return push(self, noisy, last)

    monkeypatch.setattr(UNetStream, "push", hungry)
    monkeypatch.setattr("adl_monai.stages.one_scan.fits", lambda *arguments: False)
    return rows


def test_planes_that_turn_out_too_large_are_cut_whatever_the_output(
    tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Compressing on the way needs whole planes, which is only known when the first box comes."""
    shape = (120, 16, 20)
    source, model = build_nifti(tmp_path / "scan.nii.gz", voxels("int16", shape)), identity_model(3)
    (whole,) = infer([source], tmp_path / "whole.nii.gz", model=model)
    short_of_memory(monkeypatch, 100)
    streamed = counted_streams(monkeypatch)
    (cut,) = infer([source], tmp_path / "cut.nii.gz", model=model)
    assert len(streamed) == 1
    assert "trying again in smaller pieces" in caplog.text
    assert gzip.decompress(cut.output.read_bytes()) == gzip.decompress(whole.output.read_bytes())


@pytest.mark.parametrize("names", KINDS[:3])
@pytest.mark.parametrize("most_rows", [1000, 100])
def test_an_ensemble_is_the_same_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str], most_rows: int
) -> None:
    """With the shipped network, whose result for a mirror image is another; in whole planes and in columns."""
    source = build_nifti(tmp_path / f"scan{names[0]}", voxels("int16", (120, 10, 19)), oblique_affine())
    options: dict[str, Any] = {"precision": "fp32", "dtype": "float32", "strength": 0.75}
    outputs = [
        infer([source], tmp_path / f"{count}{names[1]}", ensemble=count, **options)[0].output for count in (1, 4)
    ]
    rows, jobs = short_of_memory(monkeypatch, most_rows), counted_streams(monkeypatch)
    (streamed,) = infer([source], tmp_path / f"streamed{names[1]}", ensemble=4, preview=True, **options)
    assert len(jobs) == 1
    assert (max(rows) < 120) is (most_rows == 100)
    alone, expected, found = (nib.load(path).get_fdata() for path in (*outputs, streamed.output))
    scale = np.ptp(expected)
    np.testing.assert_allclose(found, expected, atol=1e-6 * scale)
    assert np.abs(found - alone).max() > 1e-3 * scale
    names_there = {path.name for path in tmp_path.iterdir()}
    assert names_there == {source.name, *(path.name for path in outputs), streamed.output.name, "streamed_preview.png"}


@pytest.mark.parametrize(("count", "named"), [(1, False), (2, True)])
def test_a_scan_whose_means_cannot_be_kept_is_refused_with_what_would_need_less(
    tmp_path: Path, identity_model: Model, count: int, named: bool
) -> None:
    source = build_nifti(tmp_path / "scan.nii", voxels("int16"), oblique_affine())
    options: dict[str, Any] = {"model": identity_model(3), "max_memory": 0, "noise_floor": "keep"}
    with pytest.raises(UsageError, match="--max-memory; half of that is for the scan") as refused:
        infer([source], tmp_path / "out.nii", ensemble=count, **options)
    assert ("--ensemble 1" in str(refused.value)) is named
    assert not (tmp_path / "out.nii").exists()


PEAK = """
import re, sys
from pathlib import Path
from types import SimpleNamespace
from adl_monai.stages.outputs import Job
from adl_monai.stages.stream import denoise_stream
from tests.streaming import box_by_box

class Inferer:
    needs_sums = False
    def __init__(self, cut):
        self.cut = cut
    def stream(self, read, write, shape, *rest):
        box_by_box(read, write, shape, self.cut, 8)

def held(name):
    return int(re.search(name + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

for cut in (1, 2):
    denoiser = SimpleNamespace(percentiles=(0.5, 99.5), fixed_range=None, network=None, inferer=Inferer(cut))
    for name in sys.argv[1:]:
        source = Path(name)
        Path("/proc/self/clear_refs").write_text("5")
        before = held("VmRSS")
        output = source.with_name(f"{cut}_{source.name}")
        denoise_stream(Job(source, output), denoiser, strength=0.5)
        print(held("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
def test_memory_does_not_grow_with_the_volume(tmp_path: Path) -> None:
    """Float32 copies of this volume have 105 MB each, of which memory would hold six; boxes have 4 MB."""
    stored = np.zeros((256, 256, 400), np.int16)
    stored[::2, ::3, ::5] = 100
    assert stored.size * 4 > 100e6
    source = build_nifti(tmp_path / "scan.nii", stored)
    compressed = tmp_path / "scan.nii.gz"
    compressed.write_bytes(gzip.compress(source.read_bytes(), 1))
    arguments = [sys.executable, "-c", PEAK, str(source), str(compressed)]
    result = subprocess.run(arguments, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    peaks = [int(line) for line in result.stdout.split()]
    print(f"MB: {[peak // 10**6 for peak in peaks]}")
    assert len(peaks) == 4
    assert max(peaks) < 250e6
