"""Measuring: what is refused before anything is measured, what the rows say, and that the files hold what they say."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from adl_monai.errors import AdlError, ManifestError, ModelError, OutputError, UsageError
from adl_monai.inferers import TiledInferer
from adl_monai.manifest import load_cases
from adl_monai.stages.evaluate import COLUMNS, evaluate

Model = Callable[[int], Path]

FLAT = {"synthetic": {"shape": [40, 40]}}
DEEP = {"synthetic": {"shape": [24, 24, 16], "seed": 1}}


def scan(path: Path, noise: float = 0.0) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    voxels = generator.uniform(0, 100, (16, 17, 18)) + noise * generator.normal(size=(16, 17, 18))
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.eye(4)), path)
    return str(path)


def manifest_of(folder: Path, *cases: dict[str, Any]) -> Path:
    path = folder / "m.json"
    path.write_text(json.dumps({"test": list(cases)}), encoding="utf-8")
    return path


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Any, *arguments: Any, **named: Any) -> None:
        raise AssertionError("measured before the refusal")

    monkeypatch.setattr(TiledInferer, "__call__", run)
    monkeypatch.setattr("monai.bundle.ConfigWorkflow.initialize", run)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("folder", "folder or a device"),
        ("with_table.json", "folder or a device"),
        ("m.json", "one of the inputs"),
        ("scan.nii", "one of the inputs"),
        ("metrics.csv", "where the table goes"),
        ("metrics.CSV", "where the table goes"),
        ("scan.nii/metrics.json", "one of the inputs, or inside one"),
        ("notes.txt/metrics.json", "Not a directory"),
        ("n" * 300, "cannot be written"),
    ],
)
def test_outputs_are_refused_before_measuring(tmp_path: Path, output: str, words: str, identity_model: Model) -> None:
    path = manifest_of(tmp_path, {"image": scan(tmp_path / "scan.nii")})
    (tmp_path / "folder").mkdir()
    (tmp_path / "with_table.csv").mkdir()
    (tmp_path / "notes.txt").touch()
    model = identity_model(3)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=words):
        evaluate(path, tmp_path / output, model=model, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert json.loads(path.read_text())["test"], "the manifest is not replaced"


@pytest.mark.usefixtures("unmeasured")
def test_a_folder_that_takes_no_files_is_refused_before_measuring(tmp_path: Path, identity_model: Model) -> None:
    path = manifest_of(tmp_path, DEEP)
    if Path("/proc/self").exists():
        with pytest.raises(OutputError, match=r"/proc/metrics\.json cannot be written"):
            evaluate(path, "/proc/metrics.json", model=identity_model(3))
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.geteuid() != 0:  # root may write anywhere
        with pytest.raises(OutputError, match="cannot be written"):
            evaluate(path, closed / "deep/metrics.json", model=identity_model(3))
    for name in ("metrics.json", "metrics.csv"):
        (tmp_path / name).touch()
        with pytest.raises(OutputError, match=f"{name} exists; pass --overwrite"):
            evaluate(path, tmp_path / "metrics.json", model=identity_model(3))
        (tmp_path / name).unlink()


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigmas": (0.05, -1)}, "sigma=-1.0"),
        ({"sigmas": (0.05, float("nan"))}, "sigma=nan"),
        ({"sigmas": (25,)}, "25 is above 1.*25/255"),
        ({"sigmas": ()}, "no noise level"),
        ({"noise": "hiss"}, "hiss"),
    ],
)
def test_levels_are_refused_before_measuring(
    tmp_path: Path, options: dict[str, Any], words: str, identity_model: Model
) -> None:
    path = manifest_of(tmp_path, DEEP)
    with pytest.raises(UsageError, match=words):
        evaluate(path, tmp_path / "metrics.json", model=identity_model(3), **options)
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("cases", [(FLAT, DEEP), (DEEP, FLAT)])
def test_images_of_both_kinds_need_a_model_that_takes_both(
    tmp_path: Path, cases: tuple[dict[str, Any], ...], identity_model: Model
) -> None:
    path = manifest_of(tmp_path, *cases)
    with pytest.raises(UsageError, match=r"1 images are 2D .*shape=40x40.* 1 are other volumes .*--model adl2d"):
        evaluate(path, tmp_path / "metrics.json")
    with pytest.raises(ModelError, match=r"1 of 2 images are 2D .*pass a 2D model"):
        evaluate(path, tmp_path / "metrics.json", model=identity_model(3))
    assert sorted(item.name for item in tmp_path.glob("m*")) == ["m.json"]


def test_a_2d_model_takes_both_kinds(tmp_path: Path, identity_model: Model) -> None:
    rows = evaluate(manifest_of(tmp_path, DEEP, FLAT), tmp_path / "metrics.json", model=identity_model(2))
    assert [row["psnr"] for row in rows] == pytest.approx([row["psnr_noisy"] for row in rows], abs=0.01)


def test_real_pairs_are_measured_once_and_say_that_nothing_was_added(tmp_path: Path, identity_model: Model) -> None:
    pair = {"image": scan(tmp_path / "noisy.nii", noise=5), "label": scan(tmp_path / "clean.nii")}
    path = manifest_of(tmp_path, DEEP, pair)
    rows = evaluate(path, tmp_path / "deep/er/metrics.json", model=identity_model(3), sigmas=(0.05, 0.1))
    assert [(Path(row["case"]).name.split(":")[0], row["noise"], row["sigma"]) for row in rows] == [
        ("noisy.nii", "none", 0.0),
        ("mean", "none", 0.0),
        ("synthetic", "gaussian", 0.05),
        ("mean", "gaussian", 0.05),
        ("synthetic", "gaussian", 0.1),
        ("mean", "gaussian", 0.1),
    ]
    assert rows[0]["psnr_noisy"] == rows[1]["psnr_noisy"] == pytest.approx(26, abs=1)
    assert rows[3]["psnr_noisy"] == pytest.approx(26.0, abs=0.1), "the mean of the clean cases alone"
    with (tmp_path / "deep/er/metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["noise"] for row in table] == [row["noise"] for row in rows]
    assert tuple(table[0]) == COLUMNS
    assert json.loads((tmp_path / "deep/er/metrics.json").read_text())["rows"] == rows


def test_rows_name_the_cases_and_the_noise_that_was_measured(tmp_path: Path, identity_model: Model) -> None:
    output, model = tmp_path / "metrics.json", identity_model(3)
    clean = scan(tmp_path / "clean.nii")
    pairs = [{"image": scan(tmp_path / f"{noise}.nii", noise), "label": clean} for noise in (5, 20)]
    rows = evaluate(manifest_of(tmp_path, *pairs), output, model=model)
    assert [Path(row["case"]).name for row in rows] == ["5.nii", "20.nii", "mean"]
    assert rows[0]["psnr_noisy"] > rows[1]["psnr_noisy"] + 5
    path = manifest_of(tmp_path, DEEP)
    levels = [
        evaluate(path, output, model=model, overwrite=True, **options)[0]["psnr_noisy"]
        for options in ({"seed": 1}, {"seed": 2}, {"seed": 1, "noise": "speckle"}, {"seed": 1})
    ]
    assert levels[0] == levels[3]
    assert len(set(levels)) == 3


def test_what_was_asked_for_is_what_is_measured(tmp_path: Path, identity_model: Model) -> None:
    output, model = tmp_path / "metrics.json", identity_model(3, 0.5)  # type: ignore[call-arg]
    levels = {"validation": 5, "test": 20}
    splits = {
        split: [{"image": scan(tmp_path / f"{split}_noisy.nii", level), "label": scan(tmp_path / f"{split}.nii")}]
        for split, level in levels.items()
    }
    path = tmp_path / "m.json"
    path.write_text(json.dumps(splits))
    found = {}
    for split in levels:
        found[split] = evaluate(path, output, model=model, split=split, seed=3, overwrite=True)[0]
        written = json.loads(output.read_text())
        assert (written["split"], written["seed"]) == (split, 3)
    assert found["validation"]["psnr_noisy"] > found["test"]["psnr_noisy"] + 5
    exact, rounded = (
        evaluate(path, output, model=model, precision=precision, overwrite=True)[0] for precision in ("fp32", "bf16")
    )
    assert exact["psnr_noisy"] == rounded["psnr_noisy"]
    assert exact["psnr"] != rounded["psnr"]
    assert exact["psnr"] == pytest.approx(rounded["psnr"], abs=0.5)
    with pytest.raises(UsageError, match="device 'nonsense'"):
        evaluate(path, output, model=model, device="nonsense", overwrite=True)


def test_the_whole_range_is_a_level(tmp_path: Path, identity_model: Model) -> None:
    (row, _) = evaluate(manifest_of(tmp_path, DEEP), tmp_path / "metrics.json", model=identity_model(3), sigmas=(1,))
    assert row["psnr_noisy"] == pytest.approx(0, abs=0.3)


def test_an_ensemble_is_measured_and_named(tmp_path: Path) -> None:
    path, output = manifest_of(tmp_path, FLAT), tmp_path / "metrics.json"
    alone, together = (evaluate(path, output, ensemble=count, overwrite=True)[-1] for count in (1, 4))
    assert together["psnr_noisy"] == alone["psnr_noisy"]
    assert together["psnr"] != alone["psnr"]
    assert json.loads(output.read_text())["ensemble"] == 4
    with pytest.raises(UsageError, match="ensemble is 3"):
        evaluate(path, output, ensemble=3, overwrite=True)


@pytest.mark.parametrize("real", [False, True])
def test_images_without_noise_leave_valid_json(tmp_path: Path, real: bool, identity_model: Model) -> None:
    clean = scan(tmp_path / "clean.nii")
    case = {"image": scan(tmp_path / "same.nii"), "label": clean} if real else {"image": clean}
    rows = evaluate(manifest_of(tmp_path, case), tmp_path / "metrics.json", model=identity_model(3), sigmas=(0,))
    assert [row["psnr_noisy"] for row in rows] == [float("inf")] * 2

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    written = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)["rows"]
    assert [row["psnr_noisy"] for row in written] == [None, None]
    assert written[0]["ssim_noisy"] == pytest.approx(1)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert [row["psnr_noisy"] for row in csv.DictReader(file)] == ["inf", "inf"]


def test_a_split_without_a_case_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no case under 'validation'"):
        evaluate(manifest_of(tmp_path, DEEP), tmp_path / "metrics.json", split="validation")
    with pytest.raises(ManifestError):
        evaluate(tmp_path / "gone.json", tmp_path / "metrics.json")


def test_what_cannot_be_written_at_last_leaves_nothing(
    tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adl_monai.stages.evaluate.csv.DictWriter", fail)
    model = identity_model(3)
    with pytest.raises(AdlError, match="No space left"):
        evaluate(manifest_of(tmp_path, DEEP), tmp_path / "metrics.json", model=model)
    assert not list(tmp_path.glob("*metrics*"))


def test_cases_are_chosen_by_kind(tmp_path: Path) -> None:
    pair = {"image": scan(tmp_path / "noisy.nii"), "label": scan(tmp_path / "clean.nii")}
    path = manifest_of(tmp_path, pair, DEEP)
    assert [len(load_cases(path, "test", pairs=pairs)) for pairs in (True, False, None)] == [1, 1, 2]
    assert load_cases(path, "test", pairs=True) == [pair]
