"""Names of inputs, outputs and pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from adl_monai.errors import OutputError
from adl_monai.stages.infer import infer
from adl_monai.stages.outputs import plan_jobs
from adl_monai.stages.unsuited import warn_of_spacing

Model = Callable[..., Path]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write_scan(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(0).integers(0, 900, (16, 16, 8)).astype(np.int16)
    if path.suffix == ".png":
        Image.fromarray(voxels[..., 0].astype(np.uint8)).save(path)
    else:
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestLinks:
    """As DataLad and git-annex keep scans: a telling name that links to an untelling one."""

    @pytest.fixture
    def link(self, tmp_path: Path) -> Path:
        target = tmp_path / "annex" / "cdef0123"
        write_scan(tmp_path / "annex" / "x.nii").rename(target)
        link = tmp_path / "study" / "sub-01_T1w.nii"
        link.parent.mkdir()
        link.symlink_to(os.path.relpath(target, link.parent))
        return link

    def test_the_output_is_called_after_the_link(self, link: Path, here: Path, identity_model: Model) -> None:
        (result,) = infer([link], model=identity_model(3))
        assert result.output == here / "sub-01_T1w_denoised.nii"

    def test_in_a_folder_that_is_a_link(self, link: Path, here: Path, identity_model: Model) -> None:
        (here / "study").symlink_to(link.parent)
        infer([here / "study"], here / "study", model=identity_model(3))
        (again,) = infer([here / "study"], here / "study", model=identity_model(3), overwrite=True)
        assert again.output.name == "sub-01_T1w_denoised.nii"
        assert files(link.parent) == ["sub-01_T1w.nii", "sub-01_T1w_denoised.nii"]

    def test_the_scan_behind_a_link_is_not_overwritten(self, here: Path) -> None:
        (here / "link.nii").symlink_to(write_scan(here / "x.nii"))
        for output in ("x.nii", "link.nii"):
            with pytest.raises(OutputError, match="is an input"):
                plan_jobs([here / "link.nii"], here / output)

    def test_the_way_up_and_here(self, link: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (link.parent / "deeper").mkdir()
        monkeypatch.chdir(link.parent / "deeper")
        for given in ("..", "../", "../../study/."):
            assert [job.source for job in plan_jobs([Path(given)], Path("out"))] == [link]


def test_a_name_may_begin_with_a_tilde(here: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scan(here / "~nobody.nii")
    (result,) = infer(["~nobody.nii"], model=identity_model(3))
    assert result.output == here / "~nobody_denoised.nii"
    monkeypatch.setenv("HOME", str(here))
    assert plan_jobs([Path("~/~nobody.nii")], None)[0].source == here / "~nobody.nii"


@pytest.mark.parametrize("name", ["out.mgz", "out.HDR", "out.img.gz", "out.npy", "out.nhdr"])
def test_a_format_that_is_not_written_is_no_folder(here: Path, name: str) -> None:
    with pytest.raises(OutputError, match="cannot write this format"):
        plan_jobs([write_scan(here / "a.nii")], Path(name))
    assert files(here) == ["a.nii"]


def test_a_folder_may_have_dots(here: Path) -> None:
    (job,) = plan_jobs([write_scan(here / "a.nii")], Path("results.v2"))
    assert job.output == here / "results.v2" / "a_denoised.nii"


def test_a_manifest_stands_for_the_images_of_all_its_splits(here: Path) -> None:
    splits = ("training", "validation", "test")
    for name in splits:
        write_scan(here / f"{name}.nii")
    (here / "m.json").write_text(json.dumps({name: [{"image": f"{name}.nii"}] for name in splits}))
    assert [job.source.stem for job in plan_jobs([here / "m.json"], None)] == list(splits)


def test_results_of_an_earlier_run_are_no_scans(
    here: Path, identity_model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    write_scan(here / "in" / "a.nii")
    write_scan(here / "in" / "b_denoised.nii")  # whose scan is not there: it may be one
    infer([here / "in" / "a.nii"], here / "in", model=identity_model(3), preview=True)
    found = [job.source.name for job in plan_jobs([here / "in"], here / "out")]
    assert found == ["a.nii", "b_denoised.nii"]
    assert "2 results of an earlier run" in caplog.text
    assert "a_denoised.nii, a_denoised_preview.png" in caplog.text
    (job,) = plan_jobs([here / "in" / "a_denoised.nii"], here / "out")
    assert job.output.name == "a_denoised_denoised.nii"


def test_an_odd_voxel_size_is_told_along_the_axes_that_an_image_has(caplog: pytest.LogCaptureFixture) -> None:
    for axes in (2, 3):
        warn_of_spacing(Path(f"{axes}d"), np.diag([1.0, 1.0, 50.0, 1.0]), axes)
    assert [record.getMessage().split(";")[0] for record in caplog.records] == ["3d: voxels of 1 x 1 x 50 mm"]


class TestPictures:
    """Those of ``--preview`` are outputs too."""

    def test_one_that_exists_is_kept(self, here: Path, identity_model: Model) -> None:
        write_scan(here / "a.nii")
        (here / "a_denoised_preview.png").write_bytes(b"precious")
        with pytest.raises(OutputError, match=r"picture .* exists; pass --overwrite"):
            infer(["a.nii"], model=identity_model(3), preview=True)
        assert files(here) == ["a.nii", "a_denoised_preview.png"]
        assert (here / "a_denoised_preview.png").read_bytes() == b"precious"
        infer(["a.nii"], model=identity_model(3), preview=True, overwrite=True)
        assert Image.open("a_denoised_preview.png").size[0] > 100

    def test_a_run_that_was_killed_before_its_scan_was_written_goes_on(self, here: Path, identity_model: Model) -> None:
        write_scan(here / "a.nii")
        (here / "a_denoised_preview.png").write_bytes(b"")
        infer(["a.nii"], model=identity_model(3), preview=True, resume=True)
        assert Image.open("a_denoised_preview.png").size[0] > 100

    def test_two_scans_do_not_share_one(self, here: Path, identity_model: Model) -> None:
        write_scan(here / "in" / "x.nii")
        write_scan(here / "in" / "x.nii.gz")
        with pytest.raises(OutputError, match="would share the picture"):
            infer(["in"], "out", model=identity_model(3), preview=True)
        assert len(infer(["in"], "out", model=identity_model(3))) == 2

    def test_one_is_no_input(self, here: Path, identity_model: Model) -> None:
        scans = [write_scan(here / name) for name in ("s.png", "s_denoised_preview.png")]
        before = scans[1].read_bytes()
        with pytest.raises(OutputError, match="is an input"):
            infer(scans, model=identity_model(2), preview=True, overwrite=True)
        assert scans[1].read_bytes() == before

    def test_there_is_none_of_a_scan_that_could_not_be_written(self, here: Path, identity_model: Model) -> None:
        write_scan(here / "p.png")
        with pytest.raises(OutputError):
            infer(["p.png"], model=identity_model(2), dtype="float32", preview=True)
        assert files(here) == ["p.png"]
