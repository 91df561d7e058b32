"""What MONAI Label does with a bundle: transforms picked by class, data lists and epochs handed over from outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import SaveImaged

Model = Callable[..., Path]


def scans(folder: Path, count: int) -> list[dict[str, str]]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        nib.save(
            nib.Nifti1Image(rng.normal(100, 9, (20, 24, 18)).astype(np.float32), np.eye(4)), folder / f"{index}.nii"
        )
    return [{"image": str(path), "label": str(path)} for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_scan_is_denoised_again_and_again(spatial_dims: int, identity_model: Model, tmp_path: Path) -> None:
    model = identity_model(spatial_dims, 0.3)
    (scan,) = scans(tmp_path / "in", 1)
    parser = ConfigParser()
    parser.read_config(model / "configs" / "inference.json")
    parser.config.update({"bundle_root": str(model), "device": "cpu"})
    before = sorted(model.rglob("*"))
    for _ in range(2):  # a second result of the same name would be refused
        network, inferer, preprocessing, postprocessing = (
            parser.get_parsed_content(name) for name in ("network_def", "inferer", "preprocessing", "postprocessing")
        )
        item = preprocessing({"image": scan["image"]})
        item["pred"] = inferer(item["image"][None], network.eval())[0]
        for transform in postprocessing.transforms:
            if not isinstance(transform, SaveImaged):
                item = transform(item)
        assert item["pred"].shape == (1, 20, 24, 18)
        assert abs(float(item["pred"].mean()) - 100) < 5, "in the scan's own intensities"
    assert sorted(model.rglob("*")) == before, "Label writes the results, to its own place"


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_it_trains_with_lists_of_its_own(
    spatial_dims: int, identity_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = identity_model(spatial_dims)
    monkeypatch.chdir(tmp_path)
    weights = model / "models" / "model.pt"
    before = torch.load(weights, weights_only=True)
    cases = scans(tmp_path / "in", 3)
    handlers = json.loads((model / "configs" / "train.json").read_text())["train"]["handlers"]
    load = {"_target_": "CheckpointLoader", "load_path": str(weights), "load_dict": {"model": "$@network"}}
    patch = [16, 16, 16 if spatial_dims == 3 else 1]
    monai.bundle.run(
        config_file=str(model / "configs" / "train.json"),
        meta_file=str(model / "configs" / "metadata.json"),
        bundle_root=str(model),
        logging_file=False,  # it would be that of all tests
        device=torch.device("cpu"),
        patches_per_epoch=8,
        batch_size=4,
        patch_size=patch,
        validation_size=patch,
        model_path=str(weights),
        **{
            "train#trainer#max_epochs": 2,
            "train#dataset#data": cases[:2],
            "validate#dataset#data": cases[2:],
            "train#handlers": [{**load, "strict": False}, *handlers],
        },
    )
    after = torch.load(weights, weights_only=True)
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name], value) for name, value in before.items()), "what Label uses has learned"
    state = torch.load(model / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert state["epoch"] == 2
    rate = json.loads((model / "configs" / "train.json").read_text())["learning_rate"]
    assert state["objects"]["lr_scheduler"]["_last_lr"][0] == pytest.approx(0.01 * rate), "the schedule has ended"
