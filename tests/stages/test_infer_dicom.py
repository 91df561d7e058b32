"""DICOM in, DICOM out, through the commands: where results go, what is refused beforehand, what is left behind."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from pydicom.data import get_testdata_file

import adl_monai
from adl_monai.cli import cli
from adl_monai.data.io import read_volume
from adl_monai.errors import OutputError, UsageError, user_error
from adl_monai.stages.infer import infer
from tests.dicom_tools import findings, inconsistencies

Model = Callable[..., Path]
REAL = Path(str(get_testdata_file("CT_small.dcm"))).parent


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A real series of five slices, in a folder CT."""
    return Path(shutil.copytree(REAL / "dicomdirtests" / "98892001" / "CT5N", tmp_path / "CT"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stored_by_place(folder: Path) -> list[np.ndarray]:
    datasets = sorted(map(pydicom.dcmread, folder.iterdir()), key=lambda dataset: dataset.ImagePositionPatient[2])
    return [dataset.pixel_array for dataset in datasets]


@pytest.mark.parametrize("dims", [2, 3])
def test_an_identity_model_gives_bit_equal_pixels(
    tmp_path: Path, series: Path, identity_model: Model, dims: int
) -> None:
    (result,) = infer([series], tmp_path / "out", model=identity_model(dims), precision="fp32")
    assert result.output == tmp_path / "out"
    assert names(result.output) == [f"IM_000{index}.dcm" for index in range(1, 6)]
    assert np.array_equal(stored_by_place(result.output), stored_by_place(series))


def test_the_header_names_the_model_and_its_weights(tmp_path: Path, series: Path, identity_model: Model) -> None:
    model = identity_model(3, 0.3)
    infer([series], tmp_path / "out", model=model)
    digest = hashlib.sha256((model / "models" / "model.pt").read_bytes()).hexdigest()
    headers = [pydicom.dcmread(path) for path in (tmp_path / "out").iterdir()]
    weights = f"model identity_3d, weights SHA-256 {digest}"
    for header in headers:
        assert header.DerivationDescription.endswith(
            f"{weights}, mean of 2 mirror images, strength 1, local means kept"
        )
    infer([series], tmp_path / "half", model=model, ensemble=1, strength=0.5, noise_floor="remove")
    half = [pydicom.dcmread(path).DerivationDescription for path in (tmp_path / "half").iterdir()]
    assert all(words.endswith(f"{weights}, strength 0.5, noise floor removed") for words in half)
    assert not np.array_equal(stored_by_place(tmp_path / "out"), stored_by_place(series)), "something was done"
    before = set().union(*map(findings, series.iterdir()))
    assert not set().union(*map(findings, (tmp_path / "out").iterdir())) - before
    assert inconsistencies([*(tmp_path / "out").iterdir(), *series.iterdir()]) == ""


def test_single_files_give_single_files(tmp_path: Path, identity_model: Model) -> None:
    model = identity_model(2)
    radiograph = REAL / "dicomdirtests" / "77654033" / "CR1" / "6154"  # MONOCHROME1, a name without a suffix
    results = infer([REAL / "CT_small.dcm", radiograph], tmp_path / "out", model=model, precision="fp32")
    assert [result.output.name for result in results] == ["CT_small_denoised.dcm", "6154_denoised.dcm"]
    for result in results:
        before, after = pydicom.dcmread(result.source), pydicom.dcmread(result.output)
        assert np.array_equal(before.pixel_array, after.pixel_array)
        assert before.PhotometricInterpretation == after.PhotometricInterpretation
    (result,) = infer([REAL / "MR_small.dcm"], tmp_path / "y.dcm", model=model, precision="fp32", preview=True)
    assert result.output == tmp_path / "y.dcm"
    assert names(tmp_path)[-2:] == ["y.dcm", "y_preview.png"]


def test_a_tree_of_series_and_files(tmp_path: Path, series: Path, identity_model: Model) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(series, tree / "a" / "one")
    shutil.copytree(series, tree / "b" / "two")
    (result,) = infer([series], tmp_path / "scan.nii.gz", model=identity_model(3))
    result.output.rename(tree / "scan.nii.gz")
    infer([tree], tmp_path / "out", model=identity_model(3), preview=True)
    assert names(tmp_path / "out") == ["a", "b", "scan_denoised.nii.gz", "scan_denoised_preview.png"]
    assert names(tmp_path / "out" / "a") == ["one_denoised", "one_denoised_preview.png"]
    assert names(tmp_path / "out" / "b") == ["two_denoised", "two_denoised_preview.png"]
    uids = {pydicom.dcmread(tmp_path / "out" / name / "IM_0001.dcm").SeriesInstanceUID
            for name in ("a/one_denoised", "b/two_denoised")}  # fmt: skip
    assert len(uids) == 2


def test_without_an_output_the_series_goes_beside(
    tmp_path: Path, series: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["infer", "CT", "--model", str(identity_model(3))], catch_exceptions=False)
    assert result.exit_code == 0
    assert len(names(tmp_path / "CT_denoised")) == 5


def test_padding_is_hidden_from_the_model_and_put_back(tmp_path: Path, series: Path, identity_model: Model) -> None:
    for path in series.iterdir():
        dataset = pydicom.dcmread(path)
        stored = dataset.pixel_array.copy()
        stored[:4], dataset.PixelPaddingValue = -2000, -2000
        dataset.PixelData = stored.tobytes()
        dataset.save_as(path)
    model = identity_model(3, 0.3)
    infer([series], tmp_path / "out", model=model)
    after, source = read_volume(tmp_path / "out"), read_volume(series)
    assert (after.array[:, :4] == -3024).all()
    assert not np.array_equal(after.array[:, 4:], source.array[:, 4:])
    in_memory = adl_monai.denoise(series, model)
    assert np.abs(in_memory.array - after.array).max() <= 0.5 + 1e-3


class TestRefusals:
    """Each before anything is computed: the model is one that does not exist."""

    def refuse(self, error: type[Exception], match: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(error, match=match):
            infer(*arguments, **{"model": "/no/model", **options})

    def test_places(self, tmp_path: Path, series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = names(tmp_path)
        link = tmp_path / "link"
        link.symlink_to(series)
        (tmp_path / "file").write_text("precious")
        cases = [
            (series, "is an input"), (link, "is an input"), (series / "x", "inside the input"),
            (series / "x.nii.gz", "inside the input"), (tmp_path, "holds the input"),
            (tmp_path / "y.dcm", "many files"), (tmp_path / "file", "exists"),
            (tmp_path / "file" / "x", "cannot be made"),
        ]  # fmt: skip
        for output, word in cases:
            self.refuse(OutputError, word, [series], output, overwrite=output.name != "file")
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        self.refuse(OutputError, "cannot be replaced", [series], tmp_path / "here")
        monkeypatch.chdir(series)
        self.refuse(OutputError, "inside the input", [Path(".")], None)
        assert names(tmp_path) == sorted([*before, "file", "here", "link"])
        assert (tmp_path / "file").read_text() == "precious"

    def test_types(self, tmp_path: Path, series: Path) -> None:
        self.refuse(UsageError, "keeps the source's integers", [series], tmp_path / "out", dtype="float32")
        infer([series], tmp_path / "a.nii", strength=0)
        self.refuse(OutputError, "from DICOM alone", [tmp_path / "a.nii"], tmp_path / "out.dcm")

    def test_no_room(self, tmp_path: Path, series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        self.refuse(OutputError, "1,000 bytes left", [series], tmp_path / "out")

    def test_read_only(self, tmp_path: Path, series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda *arguments: False)
        self.refuse(OutputError, "not writable", [series], tmp_path / "out")


def test_only_a_series_of_ours_is_ever_replaced(tmp_path: Path, series: Path, identity_model: Model) -> None:
    out, model = tmp_path / "out", identity_model(3)
    out.mkdir()
    infer([series], out, model=model)  # an empty folder is no loss
    first = pydicom.dcmread(out / "IM_0001.dcm").SOPInstanceUID
    with pytest.raises(OutputError, match="--overwrite"):
        infer([series], out, model=model)
    (out / "IM_0006.dcm").write_bytes(b"a longer series, earlier")
    infer([series], out, model=model, overwrite=True)
    assert len(names(out)) == 5, "replaced whole"
    assert pydicom.dcmread(out / "IM_0001.dcm").SOPInstanceUID != first
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="holds other things"):
        infer([series], out, model=model, overwrite=True)
    assert (out / "thesis.txt").read_text() == "precious"
    assert names(tmp_path) == ["CT", "identity_3d", "out"]


@pytest.mark.parametrize("how", ["full", "interrupt", "rename"])
@pytest.mark.parametrize("old", [False, True])
def test_a_failed_write_leaves_the_place_as_it_was(
    tmp_path: Path, series: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch, how: str, old: bool
) -> None:
    model, out = identity_model(3), tmp_path / "out"
    if old:
        infer([series], out, model=model)
    before = {path.name: path.read_bytes() for path in out.iterdir()} if old else {}
    calls, place = [], (Path, "rename") if how == "rename" else (os, "fsync")
    genuine = getattr(*place)
    # The third file; or, of renames, that of the new series, after the old one has stepped aside.
    deadly = {"full": 3, "interrupt": 1, "rename": 2 if old else 1}[how]

    def fail(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == deadly:
            raise KeyboardInterrupt if how == "interrupt" else OSError(errno.ENOSPC, "No space left on device")
        return genuine(*arguments)

    monkeypatch.setattr(*place, fail)
    with pytest.raises((KeyboardInterrupt, OutputError, RuntimeError)) as caught:
        infer([series], out, model=model, overwrite=old)
    if how != "interrupt":
        assert isinstance(user_error(caught.value), OutputError)
    monkeypatch.undo()
    assert names(tmp_path) == ["CT", "identity_3d", *(["out"] if old else [])]
    assert ({path.name: path.read_bytes() for path in out.iterdir()} if old else {}) == before


def test_the_bundle_writes_what_the_command_line_writes(tmp_path: Path, series: Path, identity_model: Model) -> None:
    """Equal but for what is new each time: UIDs and the time."""
    model = identity_model(3, 0.3)
    infer([series], tmp_path / "ours", model=model, precision="fp32")
    command = [
        *(sys.executable, "-m", "monai.bundle", "run"),
        *("--config_file", str(model / "configs" / "inference.json")),
        *("--meta_file", str(model / "configs" / "metadata.json")),
        *("--bundle_root", str(model), "--dataset_dir", str(series), "--output_dir", str(tmp_path / "theirs")),
        *("--precision", "fp32"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs" / "CT_denoised"
    assert names(ours) == names(theirs)
    new = {"SOPInstanceUID", "SeriesInstanceUID", "ContributingEquipmentSequence"}
    new |= {f"{name}{unit}" for name in ("InstanceCreation", "Series", "Content") for unit in ("Date", "Time")}
    for name in names(ours):
        first, second = pydicom.dcmread(ours / name), pydicom.dcmread(theirs / name)
        assert first.keys() == second.keys()
        assert all(element == second[element.tag] for element in first if element.keyword not in new)
