"""Rows 1 to 23 of the table in tests/README.md: single files, by the command line."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import adl_monai
from tests.data.conftest import build_nifti, oblique_affine

from .conftest import Command, Refused, assert_warned_and_kept

Make = Callable[[Path], Path]


def voxels(dtype: str = "int16", shape: tuple[int, ...] = (9, 10, 7)) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 120, shape).astype(dtype)


def nifti(name: str = "scan.nii", stored: np.ndarray | None = None, **options: Any) -> Make:
    return lambda folder: build_nifti(folder / name, voxels() if stored is None else stored, **options)


def cut(name: str, keep: float) -> Make:
    def make(folder: Path) -> Path:
        path = build_nifti(folder / name, voxels())
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
        return path

    return make


def holding(name: str, content: bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def with_nan(count: int) -> np.ndarray:
    stored = voxels("float32")
    stored.ravel()[:count] = [np.nan, np.inf][:count]
    return stored


def longer(path: Path) -> Path:
    path.write_bytes(path.read_bytes() + b"\1" * 60)
    return path


REFUSED: list[tuple[str, Make, list[str]]] = [
    ("1", cut("scan.nii.gz", 0.7), ["scan.nii.gz", "gzip", "cut short", "copy the file again"]),
    ("3-truncated", cut("scan.nii", 0.7), ["scan.nii", "dim", "claim 1612 bytes", "holds at most 1128", "cut short"]),
    ("3-magic", nifti(fields={"magic": b"bad\0"}), ["field magic", "n+1"]),
    ("4-empty", holding("scan.nii", b""), ["scan.nii", "empty (0 bytes)", "copy it again"]),
    ("4-text", holding("scan.nii", b"this is a text file\n" * 40), ["magic", "of another format"]),
    ("4-text-gz", holding("scan.nii.gz", gzip.compress(b"this is a text file\n" * 40)), ["magic", "another format"]),
    ("5-vox_offset", nifti(fields={"vox_offset": 12}), ["field vox_offset is 12", "expected 352 or more"]),
    ("5-ndim", nifti(fields={"dim": [9, 9, 10, 7]}), ["field dim[0] is 9", "expected 2 or 3"]),
    ("5-negative", nifti(fields={"dim": [3, 9, -10, 7]}), ["field dim[2] is -10", "at least 1"]),
    ("6", nifti(fields={"dim": [3, 32767, 32767, 32767]}), ["dim", "claim 70362301923678", "holds at most"]),
    ("6-gz", nifti("scan.nii.gz", fields={"dim": [3, 32767, 32767, 32767]}), ["claim", "holds at most"]),
    ("6-less", nifti(fields={"dim": [3, 9, 10, 6]}), ["goes on behind the voxels", "dim", "copy the file again"]),
    ("6-less-gz", nifti("scan.nii.gz", fields={"dim": [2, 9, 10]}), ["goes on behind the voxels", "dim"]),
    ("6-longer", lambda folder: longer(build_nifti(folder / "scan.nii", voxels())), ["goes on behind"]),
    ("7", nifti(fields={"dim": [3, 9, 0, 7]}), ["field dim[2] is 0", "at least 1"]),
    ("8-4d", nifti(stored=voxels(shape=(4, 5, 6, 3))), ["4D with shape (4, 5, 6, 3)", "one 2D or 3D", "Split"]),
    ("8-5d", nifti(stored=voxels(shape=(4, 5, 6, 1, 3))), ["5D with shape", "Split it"]),
    ("10-nan", nifti(stored=with_nan(1)), ["1 of 630 voxels are NaN or infinite", "Replace them"]),
    ("10-inf", nifti("scan.nii.gz", stored=with_nan(2)), ["2 of 630 voxels are NaN or infinite"]),
    ("12", nifti(stored=np.full((4, 5, 6), 1e300)), ["120 values exceed the range of float32", "rescale"]),
    ("14-complex", nifti(stored=np.ones((4, 5, 6), np.complex64)), ["datatype is 32 (complex64)", "real or integer"]),
    ("14-rgb", nifti(fields={"datatype": 128, "bitpix": 24}), ["datatype is 128 (RGB)", "real or integer"]),
    ("16-slope", nifti(scale=(np.nan, 0.0)), ["scl_slope is nan", "finite"]),
    ("16-inter", nifti(scale=(2.0, np.inf)), ["scl_inter is inf", "finite"]),
    ("20-nan", nifti(fields={"srow_x": [np.nan, 0, 0, 0]}), ["sform", "not finite", "correct the header"]),
    ("20-code", nifti(fields={"sform_code": -1}), ["field sform_code is -1", "expected 0 to 5"]),
    ("20-singular", nifti(fields={"srow_x": [0, 0, 0, 0]}), ["sform", "singular", "correct the header"]),
]


@pytest.mark.parametrize("make, words", [case[1:] for case in REFUSED], ids=[f"row_{case[0]}" for case in REFUSED])
def test_a_bad_file_is_refused(tmp_path: Path, refused: Refused, make: Make, words: list[str]) -> None:
    path = make(tmp_path)
    refused(3, [str(path), *words], "infer", path)


def test_row_6_claims_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    """Under a limit of the address space that none of the claims fits into."""
    import resource
    import tracemalloc

    from .conftest import outcome_of_reading

    claims = {"dim": [3, 32767, 32767, 32767]}
    paths = [build_nifti(tmp_path / name, voxels(), fields=claims) for name in ("a.nii", "a.nii.gz")]
    # As much as gzip could hold, but does not: 600 MB claimed, 600 kB of other bytes there.
    bulky = build_nifti(tmp_path / "b.nii.gz", voxels(), fields={"dim": [3, 900, 900, 370]})
    noise = np.random.default_rng(0).bytes(600_000)
    bulky.write_bytes(gzip.compress(gzip.decompress(bulky.read_bytes()) + noise))
    limits = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 300 * 2**20, limits[1]))
    tracemalloc.start()
    try:
        for path in [*paths, bulky]:
            assert outcome_of_reading(path) is not None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert peak < 64 * 2**20


@pytest.mark.parametrize("shape", [(37, 61), (37, 61, 1), (1, 40, 5), (9, 23, 17)], ids=str)
def test_rows_9_and_23_any_shape_comes_back(tmp_path: Path, command: Command, shape: tuple[int, ...]) -> None:
    path = build_nifti(tmp_path / "scan.nii", voxels(shape=shape), oblique_affine())
    outcome = command("infer", path, "-o", tmp_path / "out.nii", "--noise-floor", "remove")  # without a word of it
    assert (outcome.code, outcome.err) == (0, "")
    before, after = nib.load(path), nib.load(tmp_path / "out.nii")
    assert after.shape == shape
    assert after.header.binaryblock == before.header.binaryblock
    assert (np.asanyarray(after.dataobj) != np.asanyarray(before.dataobj)).any(), "nothing was denoised"


def test_row_11_a_constant_image_comes_back_with_a_warning(tmp_path: Path, command: Command) -> None:
    path = build_nifti(tmp_path / "scan.nii", np.full((9, 10, 7), 42, np.int16))
    outcome = command("infer", path, "-o", tmp_path / "out.nii")
    assert outcome.code == 0
    assert "scan.nii is constant and is written unchanged" in outcome.err
    assert (tmp_path / "out.nii").read_bytes() == path.read_bytes()


def test_row_13_int64_beyond_float32_is_warned_of(tmp_path: Path, command: Command) -> None:
    path = build_nifti(tmp_path / "scan.nii", voxels("int64") + 2**30)
    outcome = command("infer", path, "-o", tmp_path / "out.nii", "--strength", "0")
    assert outcome.code == 0
    assert "int64 voxels reach 1.0737" in outcome.err
    assert "the last digits are lost" in outcome.err


@pytest.mark.parametrize("dtype, offset", [("int64", 2**40), ("float64", 1e12)])
def test_what_float32_would_flatten_is_refused(tmp_path: Path, command: Command, dtype: str, offset: float) -> None:
    path = build_nifti(tmp_path / "scan.nii", (voxels("int64") + offset).astype(dtype))
    outcome = command("infer", path, "-o", tmp_path / "out.nii")
    assert outcome.code == 3
    assert "the voxels differ" in outcome.err
    assert not (tmp_path / "out.nii").exists()


@pytest.mark.parametrize("order", ["<", ">"])
def test_rows_15_17_and_18_scale_byte_order_and_geometry_are_kept(tmp_path: Path, command: Command, order: str) -> None:
    # A scan with something in it: of bounded noise alone, a part is taken for the floor of Rician noise.
    scan = (10 * np.arange(9)[:, None, None] + voxels() // 4).astype(np.int16)
    path = build_nifti(
        tmp_path / "scan.nii.gz",
        scan,
        oblique_affine(),
        codes=(4, 2),
        scale=(0.5, -20.0),
        order=order,
        units=2 + 16,
    )
    assert command("infer", path, "-o", tmp_path / "same.nii.gz", "--strength", "0").code == 0
    assert gzip.decompress((tmp_path / "same.nii.gz").read_bytes()) == gzip.decompress(path.read_bytes())
    assert command("infer", path, "-o", tmp_path / "out.nii.gz").code == 0
    before, after = nib.load(path), nib.load(tmp_path / "out.nii.gz")
    assert after.header.binaryblock == before.header.binaryblock
    # Applied twice or not at all, the mean would move by more than 20.
    assert abs(after.get_fdata().mean() - before.get_fdata().mean()) < 5
    expected = adl_monai.denoise(before.get_fdata().astype(np.float32))
    np.testing.assert_allclose(after.get_fdata(), expected, atol=0.3)  # half a step of the stored integers is 0.25


WARNED = [
    ("19-forms", {"codes": (1, 1), "fields": {"qoffset_x": 99.0}}, ["sform and qform disagree", "both are kept"]),
    ("19-pixdim", {"fields": {"pixdim": [1, 2, 2, 2, 0, 0, 0, 0]}}, ["pixdim disagrees", "both are kept"]),
    ("21", {"codes": (0, 0)}, ["sform_code and qform_code are both 0"]),
    ("22-small", {"affine": np.diag([1e-3, 1e-3, 1e-3, 1.0])}, ["voxels of 0.001 x 0.001 x 0.001 mm", "0.02 to 20 mm"]),
    ("22-large", {"affine": np.diag([1.0, 1.0, 3.0, 1.0]), "units": 1}, ["1000 x 1000 x 3000 mm", "units"]),
]


@pytest.mark.parametrize("options, words", [case[1:] for case in WARNED], ids=[f"row_{case[0]}" for case in WARNED])
def test_an_odd_header_is_warned_of_and_kept(
    tmp_path: Path, command: Command, options: dict[str, Any], words: list[str]
) -> None:
    path = build_nifti(tmp_path / "scan.nii", voxels(), **options)
    assert_warned_and_kept(command, path, words)
