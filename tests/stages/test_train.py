"""A manifest of any allowed kind trains, and the run folder holds a model that denoises."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from pydicom.data import get_testdata_file
from tqdm import tqdm

import adl_monai
from adl_monai.errors import ManifestError, ModelError, OutputError, UsageError
from adl_monai.stages.evaluate import evaluate
from adl_monai.stages.train import train
from tests.conftest import TINY, TINY_2D


def write_manifest(path: Path, **splits: list[dict[str, object]]) -> Path:
    path.write_text(json.dumps(splits))
    return path


def volume(path: Path, shape: tuple[int, ...], seed: int, noise: float = 0.0) -> str:
    clean = np.indices(shape).sum(0).astype(np.float32) * 10
    clean += noise * np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    nib.save(nib.Nifti1Image(clean, np.diag([1.0, 1.0, 3.0, 1.0])), path)
    return path.name


def test_a_2d_model_trains_on_slices_and_images_of_all_kinds(tmp_path: Path) -> None:
    shutil.copy(get_testdata_file("MR_small.dcm"), tmp_path / "mr.dcm")
    picture = np.random.default_rng(0).integers(0, 4000, (40, 33))
    sitk.WriteImage(sitk.GetImageFromArray(picture.astype(np.uint16)), str(tmp_path / "picture.png"))
    sitk.WriteImage(sitk.GetImageFromArray(picture.astype(np.float32)), str(tmp_path / "picture.tif"))
    images = ["mr.dcm", "picture.png", "picture.tif", volume(tmp_path / "thick.nii.gz", (25, 30, 4), 0)]
    manifest = write_manifest(
        tmp_path / "m.json",
        training=[{"image": name} for name in images],
        validation=[{"synthetic": {"shape": [24, 24]}}],
    )
    result = train(manifest, tmp_path / "run", spatial_dims=2, overrides=TINY_2D)
    assert result.epochs == 3
    assert adl_monai.denoise(picture.astype(np.float32), result.run_dir).shape == (40, 33)
    assert adl_monai.denoise(np.stack([picture] * 3, -1), tmp_path / "run" / "bundle").shape == (40, 33, 3)


def test_real_pairs_and_clean_scans_train_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = volume(tmp_path / "clean.nii.gz", (20, 21, 22), 0)
    noisy = volume(tmp_path / "noisy.nii.gz", (20, 21, 22), 1, noise=30)
    thin = volume(tmp_path / "thin.nii.gz", (20, 20, 3), 2)
    manifest = write_manifest(
        tmp_path / "m.json",
        training=[{"image": noisy, "label": clean}, {"image": thin}],
        test=[
            {
                "image": volume(tmp_path / "b.nii.gz", (20, 21, 22), 3, noise=30),
                "label": volume(tmp_path / "a.nii.gz", (20, 21, 22), 0),
            }
        ],
    )
    result = train(manifest, tmp_path / "run", overrides=TINY)
    # Nothing validates: the last epoch's average is the model.
    assert result.best_epoch is None
    assert (result.bundle / "models" / "model.pt").is_file()
    capsys.readouterr()
    rows = evaluate(manifest, tmp_path / "metrics.json", model=result.run_dir, sigmas=[0.1, 0.2])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("adl_monai.bars.tqdm", partial(tqdm, mininterval=0))  # every step, however fast
    evaluate(manifest, tmp_path / "again.json", model=result.run_dir, sigmas=[0.1, 0.2], progress=True)
    assert "1/1" in capsys.readouterr().err
    # A real pair has the noise it has, whatever level clean cases would get: it is measured once.
    assert [(row["case"] == "mean", row["noise"], row["sigma"]) for row in rows] == [
        (False, "none", 0.0),
        (True, "none", 0.0),
    ]
    low, high = np.percentile(nib.load(tmp_path / "b.nii.gz").get_fdata(), [0.5, 99.5])
    assert rows[0]["psnr_noisy"] == pytest.approx(20 * np.log10((high - low) / 30), abs=0.2)


def test_the_bundle_of_a_run_holds_its_network(manifest: Path, tmp_path: Path) -> None:
    result = train(manifest, tmp_path / "run", overrides={**TINY, "max_epochs": 1})
    for name, multi_scale in (("train", True), ("inference", False)):
        config = json.loads((result.bundle / "configs" / f"{name}.json").read_text())
        assert config["network_def"]["filters"] == [4, 4, 4, 4]
        assert config["network_def"]["multi_scale"] is multi_scale
    weights = torch.load(result.bundle / "models" / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    for model in (result.run_dir, result.bundle, result.bundle / "models" / "model.pt"):
        assert adl_monai.denoise(np.random.default_rng(0).normal(size=(9, 9, 9)), model).shape == (9, 9, 9)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(manifest: Path, tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        result = train(manifest, tmp_path / name, overrides={**TINY, "seed": seed})
        return torch.load(result.bundle / "models" / "model.pt", weights_only=True)

    first, again, other = weights("a", 1), weights("b", 1), weights("c", 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_cache_and_checkpointing_change_no_weight(tmp_path: Path) -> None:
    clean = volume(tmp_path / "clean.nii.gz", (20, 21, 22), 0)
    noisy = volume(tmp_path / "noisy.nii.gz", (20, 21, 22), 1, noise=30)
    manifest = write_manifest(
        tmp_path / "m.json",
        training=[{"image": noisy, "label": clean}, {"image": clean}, {"synthetic": {"shape": [18, 9, 20]}}],
    )

    def weights(name: str, **values: object) -> dict[str, torch.Tensor]:
        result = train(manifest, tmp_path / name, overrides={**TINY, "network_def#norm": "batch", **values})
        return torch.load(result.bundle / "models" / "model.pt", weights_only=True)

    plain = weights("plain")
    cache = {"cache_dir": str(tmp_path / "cache")}
    runs = [weights("one", **cache), weights("two", **cache), weights("three", **{"network_def#checkpointing": True})]
    assert len(list((tmp_path / "cache").iterdir())) == 3
    for other in runs[:2]:
        assert all(torch.equal(plain[name], other[name]) for name in plain)
    for name in plain:
        torch.testing.assert_close(runs[2][name], plain[name], rtol=1e-5, atol=1e-6, msg=name)
    # The bundle of such a run denoises as any other.
    config = json.loads((tmp_path / "three" / "bundle" / "configs" / "inference.json").read_text())
    assert config["network_def"]["checkpointing"] is True
    scan = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
    np.testing.assert_allclose(
        adl_monai.denoise(scan, tmp_path / "three"), adl_monai.denoise(scan, tmp_path / "plain"), atol=1e-4
    )


def test_processes_that_draw_patches_change_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_manifest(tmp_path / "m.json", training=[{"synthetic": {"shape": [18, 20, 20], "count": 3}}])

    def weights(name: str, **values: object) -> dict[str, torch.Tensor]:
        # Without the Fourier transforms of other kinds, whose rounding depends on the number of threads.
        white = {"noise_kinds": {"gaussian": 0.5, "rician": 0.5}}
        result = train(manifest, tmp_path / name, overrides={**TINY, **white, **values})
        return torch.load(result.bundle / "models" / "model.pt", weights_only=True)

    processes: list[int] = []
    make = torch.utils.data.DataLoader.__init__

    def recorded(loader: object, *arguments: object, **named: object) -> None:
        processes.append(named["num_workers"])
        make(loader, *arguments, **named)

    monkeypatch.setattr(torch.utils.data.DataLoader, "__init__", recorded)
    with torch.backends.cudnn.flags():  # puts back what the runs set
        alone = weights("alone")
        assert set(processes) == {0}
        assert not torch.backends.cudnn.benchmark
        helped = weights("helped", num_workers=2, deterministic=False)
        assert 2 in processes
        assert torch.backends.cudnn.benchmark
    assert all(torch.equal(alone[name], helped[name]) for name in alone)


def test_a_manifest_is_never_evaluated(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    for code in (f"$__import__('pathlib').Path({str(proof)!r}).touch()", "@seed", "%train.json"):
        manifest = write_manifest(tmp_path / "m.json", training=[{"image": code}])
        with pytest.raises(ManifestError, match="do not exist"):
            train(manifest, tmp_path / "run", overrides=TINY)
    # Nor when a file of that name exists.
    name = volume(tmp_path / "$1+1.nii", (20, 20, 20), 0)
    train(write_manifest(tmp_path / "m.json", training=[{"image": name}]), tmp_path / "run", overrides=TINY)
    assert not proof.exists()


def test_refusals_come_before_the_folder_is_touched(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no case under 'training'"):
        train(write_manifest(tmp_path / "e.json", test=[{"synthetic": {"shape": [8, 8, 8]}}]), tmp_path / "run")
    with pytest.raises(UsageError, match="spatial_dims 4"):
        train(manifest, tmp_path / "run", spatial_dims=4)
    for name, answer in [
        ("patches_per_epok", "did you mean patches_per_epoch"),
        ("los#texture", "did you mean loss"),
        ("train#dataloder#batch_size", "did you mean dataloader"),
        ("qqq", "known are .*batch_size"),
    ]:
        with pytest.raises(UsageError, match=f"{name} is no value of the bundle's train.json; {answer}"):
            train(manifest, tmp_path / "run", overrides={**TINY, name: 1})
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        train(manifest, tmp_path / "file", overrides=TINY)


def test_resuming_needs_none_of_the_options_again(manifest: Path, tmp_path: Path) -> None:
    train(manifest, tmp_path / "run", spatial_dims=2, preset="release", overrides={**TINY_2D, "max_epochs": 1})
    result = train(manifest, tmp_path / "run", resume=True, overrides={"max_epochs": 3})
    assert result.epochs == 3
    config = json.loads((result.bundle / "configs" / "inference.json").read_text())
    assert config["network_def"]["filters"] == [4, 4, 4, 4]
    assert config["network_def"]["spatial_dims"] == 2
    assert json.loads((tmp_path / "run" / "options.json").read_text())["preset"] == "release"


def test_options_that_trained_nothing_are_not_recorded(manifest: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(manifest, run, overrides={**TINY, "max_epochs": 1})

    def told() -> list[bytes]:
        return [path.read_bytes() for path in (run / "options.json", *sorted((run / "bundle").rglob("*.*")))]

    before = told()
    train(manifest, run, resume=True, overrides={"loss#texture": 0.5, "noise_sigma": [0.0, 0.5]})
    assert told() == before
    train(manifest, run, resume=True, overrides={"loss#texture": 0.5, "max_epochs": 2})
    assert json.loads((run / "options.json").read_text())["overrides"]["loss#texture"] == 0.5
    (run / "options.json").unlink()
    shutil.rmtree(run / "bundle")
    train(manifest, run, resume=True, overrides={**TINY, "max_epochs": 2})
    assert (run / "bundle" / "configs" / "inference.json").exists(), "what was lost is written again"


def test_a_run_goes_on_from_what_it_started_with(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "other"):
        train(manifest, tmp_path / name, overrides={**TINY, "max_epochs": 1})
    grown = {**TINY, "network_def#filters": [6, 6, 6, 6]}
    first = {"init": tmp_path / "one", "hold": tmp_path / "one"}
    train(manifest, tmp_path / "run", **first, overrides={**grown, "max_epochs": 1})
    for given in ({"init": tmp_path / "other"}, {"hold": tmp_path / "other"}):
        name = next(iter(given))
        with pytest.raises(UsageError, match=f"started with --{name} .*one.*goes on with that, not with .*other"):
            train(manifest, tmp_path / "run", resume=True, **given)
    with pytest.raises(UsageError, match="started with no --hold"):
        train(manifest, tmp_path / "one", resume=True, hold=tmp_path / "other")
    monkeypatch.chdir(tmp_path)  # the same models by another path
    again = {name: model.name for name, model in first.items()}
    assert train(manifest, tmp_path / "run", resume=True, **again, overrides={"max_epochs": 2}).epochs == 2


def test_a_start_that_has_not_grown_from_what_is_held_is_refused(
    manifest: Path, tmp_path: Path, identity_model: Callable[[int], Path]
) -> None:
    """What the one computes would be put into the other, and the model would compute neither."""
    held = identity_model(3)
    other = shutil.copytree(held, tmp_path / "other")
    weights = torch.load(other / "models" / "model.pt", weights_only=True)
    name = next(iter(weights))
    torch.save({**weights, name: weights[name] + 0.01}, other / "models" / "model.pt")
    wider = {**TINY, "max_epochs": 1, "network_def#filters": [6, 6, 6, 6]}
    with pytest.raises(ModelError, match=rf"other.*model\.pt does not hold what .*{name} differs\); start from that"):
        train(manifest, tmp_path / "run", init=other, hold=held, overrides=wider)
    assert train(manifest, tmp_path / "run", init=held, hold=held, overwrite=True, overrides=wider).epochs == 1
    recorded = json.loads((tmp_path / "run" / "options.json").read_text())["overrides"]
    assert recorded["learning_rate"] == 0.0005, "a fresh network's would undo what the start has learned"


@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        ("loss#texture", -1, "ADLLoss refused its values: weight texture is -1"),
        ("ema#decay", 2, "EMA refused its values: EMA decay 2"),
        ("batch_size", 0, "PatchLoader refused its values: batch_size should be a positive integer"),
        ("optimizer#betas", [0.9, 1.0], "Muon refused its values: momentum .* expected 0 <= each < 1"),
        ("train#dataloader#nonsense", 3, "unexpected keyword argument 'nonsense'"),
        ("max_epochs", 0, "max_epochs is 0; expected at least 1"),
        ("device", "nonsense", "device 'nonsense' is not a device name"),
    ],
)
def test_values_that_a_component_refuses_are_an_options_error(
    manifest: Path, tmp_path: Path, name: str, value: object, answer: str
) -> None:
    given = "" if name == "device" else f".* Given were .*{name}="
    with pytest.raises(UsageError, match=answer + given):
        train(manifest, tmp_path / "run", overrides={**TINY, name: value})
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_overwrite_starts_anew(manifest: Path, tmp_path: Path) -> None:
    for _ in range(2):
        result = train(manifest, tmp_path / "run", overwrite=True, overrides={**TINY, "max_epochs": 1})
    assert result.epochs == 1
    assert len((tmp_path / "run" / "train.log").read_text().splitlines()) == 1
