"""A model whose images have a unit of their own sees them on that scale, wherever they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

import adl_monai
from adl_monai.bundle import load_denoiser, load_weights, shipped_bundle
from adl_monai.bundle_of_a_run import write_bundle
from adl_monai.errors import ScanFileError
from adl_monai.networks import EfficientUNet
from adl_monai.stages.evaluate import evaluate
from adl_monai.stages.infer import infer
from adl_monai.stages.outputs import Job
from adl_monai.stages.stream import denoise_stream
from adl_monai.stages.train import train
from tests.conftest import TINY_2D

LOW, HIGH = -1024.0, 3071.0


def model_of_hounsfield_units(folder: Path, spatial_dims: int) -> Path:
    """A model with biases, which gives another result on any other scale."""
    torch.manual_seed(3)
    arguments: dict[str, Any] = {"spatial_dims": spatial_dims, "filters": [4, 4, 4, 4], "norm": None, "bias": True}
    network = EfficientUNet(**arguments, head="residual")
    for name, value in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value, 0, 0.1)
    definition = {"_target_": "adl_monai.networks.EfficientUNet", **arguments, "head": "residual"}
    write_bundle(shipped_bundle(spatial_dims), folder, definition, {"intensity_range": [LOW, HIGH]})
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


def chest(shape: tuple[int, ...] = (32, 24, 16)) -> np.ndarray:
    values = np.random.default_rng(0).normal(40, 200, shape)
    values[: shape[0] // 2] -= 900
    return values.astype(np.int16)


def on_the_fixed_scale(image: np.ndarray, model: Path, spatial_dims: int) -> np.ndarray:
    denoiser = load_denoiser(model, spatial_dims=spatial_dims, precision="fp32")
    scaled = torch.from_numpy((image.astype(np.float32) - LOW) / (HIGH - LOW))[None, None]
    with torch.inference_mode():
        result = denoiser.network(scaled)[0, 0].numpy() * (HIGH - LOW) + LOW
    return result.clip(image.min(), image.max())


def test_the_network_sees_the_fixed_scale(tmp_path: Path) -> None:
    model, image = model_of_hounsfield_units(tmp_path / "model", 3), chest()
    expected = on_the_fixed_scale(image, model, 3)
    found = adl_monai.denoise(image, model, precision="fp32", ensemble=1, noise_floor="remove")
    np.testing.assert_allclose(found, expected, atol=0.5)
    assert np.abs(expected - image).mean() > 20
    metadata = json.loads((model / "configs" / "metadata.json").read_text())
    assert "-1024.0 and 3071.0 are 0 and 1" in metadata["image_classes"]


@pytest.mark.parametrize("from_disk_to_disk", [False, True])
def test_files_are_seen_so_too(tmp_path: Path, from_disk_to_disk: bool) -> None:
    model, image = model_of_hounsfield_units(tmp_path / "model", 3), chest()
    source, output = tmp_path / "chest.nii", tmp_path / "out.nii"
    nib.save(nib.Nifti1Image(image, np.eye(4)), source)
    options: dict[str, Any] = {"noise_floor": "remove", "dtype": "float32"}
    if from_disk_to_disk:
        denoise_stream(Job(source, output), load_denoiser(model, precision="fp32", ensemble=1), **options)
    else:
        infer([source], output, model=model, precision="fp32", ensemble=1, **options)
    np.testing.assert_allclose(nib.load(output).get_fdata(), on_the_fixed_scale(image, model, 3), atol=0.5)


@pytest.mark.parametrize("factor", [1 / 4096, 1000])
def test_an_image_in_another_unit_is_refused(tmp_path: Path, factor: float) -> None:
    model = model_of_hounsfield_units(tmp_path / "model", 3)
    with pytest.raises(ScanFileError, match=r"the model is for images whose values are between -1024 and 3071; conv"):
        adl_monai.denoise(chest().astype(np.float32) * factor, model)


def test_real_pairs_are_measured_on_the_fixed_scale(tmp_path: Path) -> None:
    model, image = model_of_hounsfield_units(tmp_path / "model", 3), chest()
    clean = (image // 3).astype(np.int16)
    for name, array in (("image", image), ("label", clean)):
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii")
    case = {"image": str(tmp_path / "image.nii"), "label": str(tmp_path / "label.nii")}
    (tmp_path / "pairs.json").write_text(json.dumps({"name": "p", "training": [], "validation": [], "test": [case]}))
    options: dict[str, Any] = {"model": model, "precision": "fp32", "ensemble": 1, "noise_floor": "remove"}
    row, *_ = evaluate(tmp_path / "pairs.json", tmp_path / "metrics.json", **options)
    errors = (on_the_fixed_scale(image, model, 3) - clean) / (HIGH - LOW)
    assert row["psnr"] == pytest.approx(-10 * np.log10(np.mean(errors**2)), abs=0.02)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("fixed", [None, [LOW, HIGH]])
def test_validation_keeps_the_fixed_scale(spatial_dims: int, fixed: list[float] | None) -> None:
    parser = ConfigParser()
    parser.read_config(str(shipped_bundle(spatial_dims) / "configs" / "train.json"))
    parser["intensity_range"] = fixed
    inferer = parser.get_parsed_content("validate#inferer")
    assert inferer.percentiles == ((0.5, 99.5) if fixed is None else None)


def test_a_constant_image_comes_back(tmp_path: Path) -> None:
    model, image = model_of_hounsfield_units(tmp_path / "model", 2), np.full((32, 32), 40.0, np.float32)
    np.testing.assert_array_equal(adl_monai.denoise(image, model), image)


def test_a_run_learns_and_is_measured_on_the_fixed_scale(tmp_path: Path) -> None:
    pictures = []
    for index in range(3):
        values = np.random.default_rng(index).integers(90, 110, (40, 48)).astype(np.uint8)  # a sliver of the 8 bits
        Image.fromarray(values).save(tmp_path / f"{index}.png")
        pictures.append({"image": str(tmp_path / f"{index}.png")})
    (tmp_path / "manifest.json").write_text(
        json.dumps({"name": "grey", "training": pictures[:1], "validation": pictures[1:2], "test": pictures[2:]})
    )
    overrides = {
        **TINY_2D,
        "validation_size": [32, 32, 1],
        "max_epochs": 1,
        "noise_kinds": {"gaussian": 1.0},
        "intensity_range": [0, 255],
        "network_def#bias": True,
        "range_jitter": 0.0,
    }
    train(tmp_path / "manifest.json", tmp_path / "run", spatial_dims=2, overrides=overrides)
    config = json.loads((tmp_path / "run" / "bundle" / "configs" / "inference.json").read_text())
    assert config["intensity_range"] == [0, 255]
    assert config["network_def"]["bias"] is True
    assert any(name.endswith("conv1.bias") for name in load_weights(tmp_path / "run" / "bundle"))
    denoiser = load_denoiser(tmp_path / "run", spatial_dims=2)
    assert denoiser.fixed_range == (0.0, 255.0)

    row, *_ = evaluate(tmp_path / "manifest.json", tmp_path / "metrics.json", model=tmp_path / "run", sigmas=[0.1])
    assert row["psnr_noisy"] == pytest.approx(20.0, abs=0.5)  # a tenth of 255, not of the sliver
