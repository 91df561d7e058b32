"""``--series all``: each of the series in a folder, as storescp leaves them, is a scan of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from adl_monai.cli import cli
from adl_monai.data.io import read_volume
from adl_monai.errors import SeriesGeometryError
from adl_monai.stages.infer import infer
from adl_monai.stages.outputs import plan_jobs
from adl_monai.stages.shards import Shard

Model = Callable[..., Path]
REAL_SERIES = Path(str(get_testdata_file("CT_small.dcm"))).parent / "dicomdirtests" / "98892001" / "CT5N"


def add_series(folder: Path, number: int | None, shift: int = 0, gap: bool = False) -> str:
    """Copy the real series into a folder under another UID and number, its values shifted."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = generate_uid()
    for index, path in enumerate(sorted(REAL_SERIES.iterdir())):
        dataset = pydicom.dcmread(path)
        if gap and index == 2:
            continue
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID = uid, generate_uid()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.SeriesNumber = number
        dataset.PixelData = (dataset.pixel_array + shift).astype(dataset.pixel_array.dtype).tobytes()
        dataset.save_as(folder / f"CT.{dataset.SOPInstanceUID}")
    return uid


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """A folder of four series, two of them of one number, one of none."""
    for number, shift in ((2, 0), (3, 10), (3, 20), (None, 30)):
        add_series(tmp_path / "flat", number, shift)
    return tmp_path / "flat"


NAMES = ["flat_series_2_denoised", "flat_series_3_1_denoised", "flat_series_3_2_denoised", "flat_series_x_denoised"]


def test_each_gives_an_output_of_its_own(flat: Path, tmp_path: Path, identity_model: Model) -> None:
    model, out = identity_model(3), tmp_path / "out"
    results = infer([flat], out, model=model, precision="fp32", series="all")
    assert sorted(result.output.name for result in results) == names(out) == NAMES
    first = read_volume(REAL_SERIES).array
    shifts = {int(np.median(read_volume(out / name).array - first)) for name in NAMES}
    assert shifts == {0, 10, 20, 30}
    assert len({pydicom.dcmread(out / name / "IM_0001.dcm").SeriesInstanceUID for name in NAMES}) == 4
    assert infer([flat], out, model=model, series="all", resume=True) == []


def test_processes_share_them(flat: Path, tmp_path: Path, identity_model: Model) -> None:
    shares = [
        infer([flat], tmp_path / "out", model=identity_model(3), series="all", shard=Shard(rank, 3))
        for rank in range(3)
    ]
    assert sum(map(len, shares)) == 4
    assert names(tmp_path / "out") == NAMES


def test_a_bad_one_is_told_and_the_others_are_done(flat: Path, tmp_path: Path, identity_model: Model) -> None:
    add_series(flat, 9, gap=True)
    arguments = ["infer", str(flat), "-o", str(tmp_path / "out"), "--series", "all", "--model", str(identity_model(3))]
    outcome = CliRunner().invoke(cli, arguments)
    assert isinstance(outcome.exception, SeriesGeometryError)
    assert "slice missing" in outcome.stderr
    assert "5 scans: 4 denoised, 0 skipped, 1 failed" in outcome.stderr
    assert names(tmp_path / "out") == NAMES


def test_a_damaged_file_may_be_of_any_series(flat: Path, tmp_path: Path) -> None:
    """The folder is refused in words when its turn comes; other folders go on."""
    file = next(flat.iterdir())
    file.write_bytes(file.read_bytes()[:400])
    shutil.copytree(REAL_SERIES, tmp_path / "in" / "one")
    flat.rename(tmp_path / "in" / "flat")
    jobs = plan_jobs([tmp_path / "in"], tmp_path / "out", every_series=True)
    assert [(job.output.name, job.series is None) for job in jobs] == [("flat_denoised", True), ("one_denoised", False)]


def test_one_series_is_called_as_without(tmp_path: Path, identity_model: Model) -> None:
    add_series(tmp_path / "ct", 5)
    (result,) = infer([tmp_path / "ct"], tmp_path / "out", model=identity_model(3), series="all")
    assert result.output == tmp_path / "out"


def test_results_among_them_are_left_out(
    tmp_path: Path, identity_model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "flat"
    uid = add_series(folder, 5)
    infer([folder], tmp_path / "derived", model=identity_model(3))
    for file in (tmp_path / "derived").iterdir():
        file.rename(folder / file.name)
    (job,) = plan_jobs([folder], None, every_series=True)
    assert job.series == uid
    assert "1 series that were denoised already are left out" in caplog.text
