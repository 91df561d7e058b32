"""Thousands of damaged scans: each is refused in words, or read as what it says, and nothing else happens."""

from __future__ import annotations

import gzip
import resource
import shutil
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.data import get_testdata_file

from adl_monai.data.io import read_volume
from adl_monai.errors import ScanFileError
from tests.data.conftest import build_nifti, build_series, oblique_affine

from .sweep import Hang, Source, damages, flip, judge

MOST_MEMORY = 1 << 30  # beyond what the process holds already
SEED = 20261124


def sources(folder: Path) -> list[Source]:
    rng = np.random.default_rng(5)
    stored = rng.integers(-900, 3000, (9, 10, 7))
    options = {"scale": (0.5, -10.0), "codes": (2, 0)}
    made: list[tuple[Path, Path]] = []
    for name in ("a.nii", "b.nii.gz"):
        path = build_nifti(folder / name, stored.astype(np.int16), oblique_affine(), **options)
        made.append((path, path))
    for name in ("c.nii", "d.nii.gz"):
        values = rng.normal(0, 500, (5, 6, 4)).astype(np.float32)
        path = build_nifti(folder / name, values, oblique_affine(), order=">", version=2, extension=b"note")
        made.append((path, path))
    for name in ("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm"):
        shutil.copy(str(get_testdata_file(name)), folder / name)
        made.append((folder / name, folder / name))
    for index, place in enumerate((0, 2, 4)):
        paths = build_series(folder / f"series{index}", [0.0, 2.5, 5.0, 7.5, 10.0], seed=index)
        made.append((paths[place], folder / f"series{index}"))
    return [Source(file, scan, file.read_bytes()) for file, scan in made]


def sweep(folder: Path, rounds: int, seed: int) -> tuple[Counter[tuple[str, str, str]], list[str]]:
    """``rounds`` times every damage to every source; returns the counts and what went wrong, in words."""
    out = folder / "out"
    out.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MOST_MEMORY, limits[1]))
    counts: Counter[tuple[str, str, str]] = Counter()
    wrong: list[str] = []
    try:
        for number, source in enumerate(sources(folder)):
            assert judge(source, source.whole, out) == "unchanged", "a sound scan"
            for index, damage in enumerate(damages(source)):
                for attempt in range(rounds):
                    rng = np.random.default_rng([seed, number, index, attempt])
                    try:
                        verdict = judge(source, damage(source.whole, rng), out)
                    except (Exception, Hang) as error:
                        verdict = "WRONG"
                        wrong.append(f"{source.file.name} {damage.__name__} {attempt}: {type(error).__name__} {error}")
                        shutil.rmtree(out)
                        out.mkdir()
                    counts[source.kind, damage.__name__, verdict] += 1
            source.file.write_bytes(source.whole)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    return counts, wrong


@pytest.mark.parametrize(
    "rounds, seed", [(3, SEED), pytest.param(50, SEED + 1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_damage_is_refused_or_read_as_it_stands(tmp_path: Path, rounds: int, seed: int) -> None:
    counts, wrong = sweep(tmp_path, rounds, seed)
    totals = Counter()
    for (kind, _, verdict), count in counts.items():
        totals[kind, verdict] += count
    print(f"{counts.total()} damaged scans: " + ", ".join(f"{k} {v} {n}" for (k, v), n in sorted(totals.items())))
    assert not wrong, "\n".join(wrong[:40])
    assert counts.total() == rounds * 6 * 10
    assert all(totals[kind, "refused"] > 0 for kind in (".nii", ".nii.gz", ".dcm", "series"))


def nibabel_refuses(path: Path) -> bool:
    try:
        np.asanyarray(nib.load(path).dataobj)
    except Exception:
        return True
    return False


def test_row_2_400_flipped_bits_of_a_gz_are_400_refusals(tmp_path: Path) -> None:
    """Flips that change the inflated bytes; nibabel alone notices a part of them only."""
    stored = np.random.default_rng(0).integers(-900, 900, (16, 17, 18)).astype(np.int16)
    path = build_nifti(tmp_path / "scan.nii.gz", stored, oblique_affine())
    whole, rng = path.read_bytes(), np.random.default_rng(400)
    refused = noticed = harmless = 0
    while refused < 400:
        damaged = flip(whole, rng)
        try:
            harmless += gzip.decompress(damaged) == gzip.decompress(whole)
            continue  # a time, a system, a spare bit: the very same voxels
        except Exception:
            path.write_bytes(damaged)
        with pytest.raises(ScanFileError, match=r"scan\.nii\.gz"):
            read_volume(path)
        refused += 1
        noticed += nibabel_refuses(path)
    print(f"{refused} of {refused} refused, nibabel alone {noticed}; {harmless} other flips changed nothing")
    assert noticed < refused
    assert harmless < 20
