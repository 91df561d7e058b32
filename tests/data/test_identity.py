import os
from functools import partial

import numpy as np
import pytest
import torch
from monai.transforms import Lambdad, SpatialPadd

from adl_monai.data.monai_io import StrictLoadImaged
from adl_monai.data.normalization import RobustNormalized
from adl_monai.data.training.identity import describe, identity
from adl_monai.errors import UsageError


def test_a_file_changes_with_its_size_time_and_place(tmp_path):
    scan = tmp_path / "scan.nii"
    scan.write_bytes(b"abc")
    os.utime(scan, ns=(1, 1))
    first = identity(str(scan))
    assert identity(scan) == first
    os.utime(scan, ns=(1, 2))
    later = identity(scan)
    scan.write_bytes(b"abcd")
    os.utime(scan, ns=(1, 1))
    longer = identity(scan)
    moved = identity(scan.rename(tmp_path / "other.nii"))
    assert len({str(one) for one in (first, later, longer, moved)}) == 4


def test_a_folder_changes_with_any_file_below_it(tmp_path):
    series = tmp_path / "series"
    (series / "inner").mkdir(parents=True)
    (series / "inner" / "1.dcm").write_bytes(b"a")
    first = identity(series)
    assert identity(series) == first
    (series / "2.dcm").write_bytes(b"a")
    more = identity(series)
    (series / "inner" / "1.dcm").write_bytes(b"ab")
    assert len({str(one) for one in (first, more, identity(series))}) == 3


def test_what_is_no_file_stands_for_itself():
    assert identity("synthetic:kind=leaves,shape=8x8,seed=1") == "synthetic:kind=leaves,shape=8x8,seed=1"
    assert identity(3) == 3


def scale(factor):
    return lambda image: image * factor


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: RobustNormalized("image"), RobustNormalized("image", upper=99.0)),
        (lambda: RobustNormalized("image"), StrictLoadImaged("image")),
        (lambda: SpatialPadd("image", (8, 8, 8), mode="symmetric"), SpatialPadd("image", (8, 8, 16), mode="symmetric")),
        (lambda: SpatialPadd("image", (8, 8, 8), mode="symmetric"), SpatialPadd("image", (8, 8, 8))),
        (lambda: Lambdad("image", scale(2)), Lambdad("image", scale(3))),
        (lambda: Lambdad("image", lambda image: image + 1), Lambdad("image", lambda image: image + 2)),
        (lambda: partial(max, 1), partial(max, 2)),
        (lambda: {"a": {1, 2}, "b": np.float32(1)}, {"a": {1, 2}, "b": np.float64(1)}),
        (lambda: np.arange(3), np.arange(1, 4)),
        (lambda: torch.float32, torch.float16),
        (lambda: torch.ones(2), torch.zeros(2)),
    ],
)
def test_equal_objects_are_described_equally_and_others_are_not(make, other):
    assert describe(make()) == describe(make())
    assert describe(make()) != describe(other)


def test_what_hides_its_state_is_refused():
    with pytest.raises(UsageError, match=r"generator does not reveal its state.*train without cache_dir"):
        describe([(number for number in range(3))])


@pytest.mark.parametrize("suffix", [".mhd", ".MHD"])
def test_a_metaimage_header_changes_with_the_file_of_its_voxels(tmp_path, suffix):
    header, voxels = tmp_path / f"scan{suffix}", tmp_path / "scan.raw"
    header.write_text("NDims = 3\nElementDataFile = scan.raw\n")
    missing = identity(header)
    voxels.write_bytes(b"abc")
    first = identity(header)
    assert identity(str(header)) == first
    voxels.write_bytes(b"abcd")
    longer = identity(header)
    os.utime(voxels, ns=(1, 1))
    assert len({str(one) for one in (missing, first, longer, identity(header))}) == 4


def test_a_metaimage_of_one_file_is_that_file(tmp_path):
    scan = tmp_path / "scan.mha"
    scan.write_bytes(b"NDims = 3\nElementDataFile = LOCAL\n" + bytes(range(256)))
    assert len(identity(scan)) == 3
    scan.write_bytes(bytes(range(256)))
    assert len(identity(scan)) == 3
