"""The paper's preset is the paper's network; the default differs in values of the bundle, not in class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adl_monai.bundle import open_workflow, shipped_bundle
from adl_monai.errors import UsageError
from adl_monai.networks import EfficientUNet, EfficientUNetDiscriminator
from adl_monai.stages.train import train


@pytest.mark.parametrize(("spatial_dims", "parameters"), [(2, 4_128_868), (3, 11_980_612)])
def test_the_paper_preset_is_the_paper(spatial_dims: int, parameters: int, manifest: Path, tmp_path: Path) -> None:
    options = {"manifest": str(manifest), "output_dir": str(tmp_path), "device#name": "cpu"}
    workflow = open_workflow(shipped_bundle(spatial_dims), ("train", "paper"), "train", options)
    workflow.initialize()
    denoiser = workflow.parser.get_parsed_content("network_def")
    discriminator = workflow.parser.get_parsed_content("discriminator_def")
    loss = workflow.parser.get_parsed_content("loss")
    assert type(denoiser) is EfficientUNet
    assert type(discriminator) is EfficientUNetDiscriminator
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == parameters
    assert loss.weights == {"l1": 1.0, "l2": 0.0, "texture": 1.0, "histogram": 1.0, "adversarial": 1.0}
    noisy = torch.rand(1, 1, *[16] * spatial_dims)
    with torch.no_grad():
        scales = denoiser.eval()(noisy)
        masks = discriminator.eval()(noisy)
    assert [image.shape[-1] for image in scales] == [16, 8, 4]
    assert [mask.shape[-1] for mask in masks] == [16, 8, 4, 2]
    assert all(image.min() > 0 and image.max() < 1 for image in scales), "sigmoid heads"


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_release_preset_asks_most_of_the_full_scale(spatial_dims: int, manifest: Path, tmp_path: Path) -> None:
    options = {"manifest": str(manifest), "output_dir": str(tmp_path), "device#name": "cpu"}
    workflow = open_workflow(shipped_bundle(spatial_dims), ("train", "release"), "train", options)
    workflow.initialize()
    loss = workflow.parser.get_parsed_content("loss")
    assert loss.weights == {"l1": 1.0, "l2": 0.0, "texture": 0.1, "histogram": 0.0, "adversarial": 0.0}
    assert loss.scale_weights == (1.0, 0.1, 0.1)


def test_an_unknown_preset_is_refused(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected one of default, paper, release"):
        train(manifest, tmp_path / "run", preset="fancy")
    assert not (tmp_path / "run").exists()
