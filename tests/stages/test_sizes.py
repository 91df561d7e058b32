"""How much memory scans take, told before they are read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from adl_monai.stages.one_scan import DenoiserChoice, steps_of
from adl_monai.stages.outputs import Job
from adl_monai.stages.sizes import fits, memory_needed
from tests.data.conftest import build_nifti

SHAPE = (20, 30, 40)


def test_nifti_by_its_header(tmp_path: Path) -> None:
    """Compressed to next to nothing, and still counted in full."""
    scan = build_nifti(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.int16))
    job, need = Job(scan, tmp_path / "o.nii"), memory_needed(SHAPE, np.dtype(np.int16))
    assert 24 <= need / np.prod(SHAPE) <= 28
    assert scan.stat().st_size < need / 100
    assert fits(job, 2 * need)  # half is the network's
    assert not fits(job, 2 * need - 2)
    assert fits(job)
    assert fits(job, 6 * need, scans=3)
    assert not fits(job, 6 * need - 6, scans=3), "three share what one may take"
    assert not fits(job, 2 * need, ensemble=2), "a mirror image takes memory too"
    assert fits(job, 2 * memory_needed(SHAPE, np.dtype(np.int16), 2), ensemble=2)
    assert [DenoiserChoice(None, max_memory=2 * need, ensemble=count).fits(job) for count in (1, 2)] == [True, False]


def test_an_ensemble_of_two_takes_half_of_what_more_take() -> None:
    voxels = int(np.prod(SHAPE))
    one, two, four, eight = (memory_needed(SHAPE, np.dtype(np.int16), count) / voxels for count in (1, 2, 4, 8))
    assert 7 <= two - one < 9, "its first result is the sum"
    assert 15 <= four - one < 17
    assert eight == four


@pytest.mark.parametrize("many", [1, 4])
def test_others_by_their_files(tmp_path: Path, many: int) -> None:
    for index in range(many):
        shutil.copy(get_testdata_file("CT_small.dcm"), tmp_path / f"{index}.dcm")
    source = tmp_path if many > 1 else tmp_path / "0.dcm"
    job, need = Job(source, tmp_path / "o"), memory_needed((128, 128, many), np.dtype(np.int16))
    assert fits(job, 2.5 * need)
    assert not fits(job, 1.9 * need)


def test_a_large_scan_of_any_format_is_done_alone(tmp_path: Path) -> None:
    """With no other scan in memory; a file that cannot be judged is left to its reader to refuse."""
    scan = Job(Path(get_testdata_file("CT_small.dcm")), tmp_path / "o")
    size = scan.source.stat().st_size
    for max_memory, alone in ((60 * size, True), (100 * size, False)):  # of which half is shared by three
        assert steps_of(DenoiserChoice(None, max_memory=max_memory), False, False, False).runs_whole(scan) is alone
    (tmp_path / "bad.nii").write_bytes(b"no scan")
    steps = steps_of(DenoiserChoice(None, max_memory=1), False, False, False)
    assert not steps.runs_whole(Job(tmp_path / "bad.nii", tmp_path / "o.nii"))
    assert not steps.runs_whole(Job(tmp_path / "none.dcm", tmp_path / "o"))
