"""Folders in folders: results lie as their scans do, and what was denoised already is no scan."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from pydicom.data import get_testdata_file

from adl_monai.cli import cli
from adl_monai.errors import OutputError, UsageError
from adl_monai.stages.infer import infer
from adl_monai.stages.outputs import plan_jobs
from adl_monai.stages.prepare import prepare
from adl_monai.stages.shards import Shard

Model = Callable[..., Path]
REAL_SERIES = Path(str(get_testdata_file("CT_small.dcm"))).parent / "dicomdirtests" / "98892001" / "CT5N"


def save(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        voxels = np.random.default_rng(0).integers(0, 900, (16, 16, 8)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


def visible(folder: Path) -> list[str]:
    """The files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file())


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """One name in two folders, and a scan beside these."""
    save(*(tmp_path / "pat" / name for name in ("p01/T1.nii.gz", "p02/T1.nii.gz", "top.nii")))
    return tmp_path / "pat"


RESULTS = ["p01/T1_denoised.nii.gz", "p02/T1_denoised.nii.gz", "top_denoised.nii"]


def test_results_lie_as_their_scans_do(study: Path, tmp_path: Path, identity_model: Model) -> None:
    model, out = identity_model(3), tmp_path / "out"
    infer([study], out, model=model, preview=True)
    pictures = [f"{name.partition('.')[0]}_preview.png" for name in RESULTS]
    assert visible(out) == sorted(RESULTS + pictures)
    with pytest.raises(OutputError, match="--resume"):
        infer([study], out, model=model)
    (out / RESULTS[1]).unlink()
    (again,) = infer([study], out, model=model, preview=True, resume=True)
    assert again.output == out / RESULTS[1]
    assert len(infer([study], out, model=model, preview=True, overwrite=True)) == 3


def test_without_an_output_they_go_into_the_working_folder(
    study: Path, tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    infer(["../pat"], model=identity_model(3))
    assert visible(tmp_path / "here") == RESULTS


@pytest.mark.parametrize("inside", ["", "out"])
def test_an_output_folder_in_the_input_folder_is_no_input(study: Path, identity_model: Model, inside: str) -> None:
    model, out = identity_model(3), study / inside
    for _ in range(2):
        infer([study], out, model=model, preview=True, resume=True)
    assert [path for path in visible(out) if path.endswith((".nii", ".nii.gz")) and "denoised" in path] == RESULTS
    assert len(visible(study)) == 9


def test_processes_share_what_lies_in_sub_folders(study: Path, identity_model: Model) -> None:
    done = []
    for rank in range(2):
        done += infer([study], study / "out", model=identity_model(3), shard=Shard(rank, 2))
    assert visible(study / "out") == RESULTS
    assert len(done) == 3


def test_media_have_one_leaf_name_for_many_series(tmp_path: Path, identity_model: Model) -> None:
    leaves = [f"PA00000{person}/ST000000/SE000000" for person in range(2)]
    for leaf in leaves:
        shutil.copytree(REAL_SERIES, tmp_path / "DICOM" / leaf)
    infer([tmp_path / "DICOM"], tmp_path / "out", model=identity_model(3))
    assert visible(tmp_path / "out") == [
        f"{leaf}_denoised/IM_000{index}.dcm" for leaf in leaves for index in range(1, 6)
    ]


def test_two_folders_with_equal_insides_are_refused(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "copy")
    with pytest.raises(UsageError, match=r"same name .*p01.T1_denoised\.nii\.gz"):
        plan_jobs([study, tmp_path / "copy"], tmp_path / "out")


def test_names_that_differ_in_case_alone_are_one_to_some_file_systems(tmp_path: Path) -> None:
    save(tmp_path / "x" / "A.nii.gz", tmp_path / "y" / "a.nii.gz")
    with pytest.raises(UsageError, match="same name"):
        plan_jobs([tmp_path / "x", tmp_path / "y"], tmp_path / "out")
    save(tmp_path / "z" / "A.nii", tmp_path / "z" / "a.nii.gz")
    with pytest.raises(OutputError, match="share the picture"):
        infer([tmp_path / "z"], tmp_path / "out", model="/no/model", preview=True)


class TestDerivedSeries:
    """A study that was exported after its denoising."""

    @pytest.fixture
    def study(self, tmp_path: Path, identity_model: Model) -> Path:
        shutil.copytree(REAL_SERIES, tmp_path / "study" / "SE0")
        infer([tmp_path / "study" / "SE0"], tmp_path / "study" / "SE1", model=identity_model(3))
        return tmp_path / "study"

    def test_it_is_not_denoised_again(
        self, study: Path, tmp_path: Path, identity_model: Model, caplog: pytest.LogCaptureFixture
    ) -> None:
        results = infer([study], tmp_path / "out", model=identity_model(3))
        assert [result.source for result in results] == [study / "SE0"]
        assert caplog.text.count("1 results of an earlier run are left out (SE1)") == 1

    def test_but_where_it_is_named(self, study: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert [job.source for job in plan_jobs([study / "SE1"], tmp_path / "out")] == [study / "SE1"]
        assert caplog.text == ""
        shutil.rmtree(study / "SE0")
        with pytest.raises(UsageError, match="unless they are named"):
            plan_jobs([study], tmp_path / "out")

    def test_a_folder_of_both_is_left_to_series(self, study: Path, tmp_path: Path) -> None:
        for index, file in enumerate((study / "SE1").iterdir()):
            file.rename(study / "SE0" / f"000{index}.dcm")  # the first that is looked at
        assert [job.source for job in plan_jobs([study], tmp_path / "out")] == [study / "SE0"]

    def test_nothing_is_learned_from_it(self, study: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        manifest = prepare([study], tmp_path / "m.json", split=(1, 0, 0))
        assert [Path(case.image).name for case in manifest.training] == ["SE0"]
        assert "1 files are left out as results" in caplog.text
        manifest = prepare([study / "SE1"], tmp_path / "n.json", split=(1, 0, 0))
        assert [Path(case.image).name for case in manifest.training] == ["SE1"]


def test_infer_and_prepare_know_the_same_results(tmp_path: Path) -> None:
    """In another format too: ``infer -o a_denoised.nii`` wrote that; and ``infer data -o data/deep`` the one there."""
    names = ("a.nii.gz", "a_denoised.nii", "b_denoised.nii", "deep/a_denoised.nii", "deep/c_denoised.nii")
    save(*(tmp_path / "data" / name for name in names))
    expected = ["a.nii.gz", "b_denoised.nii", "deep/c_denoised.nii"]
    jobs = plan_jobs([tmp_path / "data"], tmp_path / "out")
    assert sorted(job.source.relative_to(tmp_path / "data").as_posix() for job in jobs) == expected
    manifest = prepare([tmp_path / "data"], tmp_path / "m.json", split=(1, 0, 0))
    assert sorted(Path(case.image).relative_to(tmp_path / "data").as_posix() for case in manifest.training) == expected


def test_a_name_that_gets_too_long_costs_its_own_scan_alone(tmp_path: Path, identity_model: Model) -> None:
    data = tmp_path / "data"
    save(data / "a.nii", data / f"{'x' * 245}.nii", data / "deep" / f"{'y' * 235}.nii", data / "z.nii")
    command = ["infer", str(data), "-o", str(tmp_path / "out"), "--model", str(identity_model(3))]
    outcome = CliRunner().invoke(cli, command)
    assert isinstance(outcome.exception, OutputError)
    assert "4 scans: 3 denoised, 0 skipped, 1 failed" in outcome.stderr
    assert "has too long a name" in outcome.stderr
    kept = ["a_denoised.nii", f"deep/{'y' * 235}_denoised.nii", "z_denoised.nii"]
    assert visible(tmp_path / "out") == kept
    outcome = CliRunner().invoke(cli, [*command, "--resume"])
    assert "4 scans: 0 denoised, 3 skipped, 1 failed" in outcome.stderr
    outcome = CliRunner().invoke(cli, [*command, "--overwrite", "--preview"])  # y's picture would be too long
    assert isinstance(outcome.exception, OutputError)
    assert "4 scans: 2 denoised, 0 skipped, 2 failed" in outcome.stderr
