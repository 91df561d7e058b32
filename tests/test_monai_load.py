"""``monai.bundle.load`` finds the shipped network with its weights; the network of new runs is small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, load

from adl_monai.bundle import load_weights, shipped_bundle
from adl_monai.stages.train import train
from tests.conftest import TINY, TINY_2D

DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])
DEFAULT_FILTERS = {2: (32, 64, 96, 128), 3: (16, 32, 48, 64)}  # what `adl-monai train` trains


@DIMS
@pytest.mark.parametrize("workflow_type", [None, "inference"])
def test_a_shipped_bundle_loads_with_its_weights(spatial_dims: int, workflow_type: str | None) -> None:
    root = shipped_bundle(spatial_dims)
    options = {} if workflow_type is None else {"workflow_type": workflow_type}
    network = load(root.name, bundle_dir=root.parent, device="cpu", **options)
    loaded, weights = network.state_dict(), load_weights(root)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


@DIMS
def test_a_new_run_trains_the_small_network(spatial_dims: int, manifest: Path, tmp_path: Path) -> None:
    tiny = TINY if spatial_dims == 3 else TINY_2D
    options = {key: value for key, value in tiny.items() if key != "network_def#filters"}
    train(manifest, tmp_path / "run", spatial_dims=spatial_dims, overrides={**options, "max_epochs": 1})
    weights = load_weights(tmp_path / "run" / "bundle")
    stages = ("encode1", "encode2", "encode3", "bridge")
    widths = [{value.shape[0] for name, value in weights.items() if name.startswith(f"encoder.{s}")} for s in stages]
    assert all(width in found for width, found in zip(DEFAULT_FILTERS[spatial_dims], widths, strict=True)), widths
    network = load("bundle", bundle_dir=tmp_path / "run", device="cpu")
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_a_runs_own_preset_is_its_own_network(manifest: Path, tmp_path: Path) -> None:
    """Its documentation lays ``default.json`` over ``train.json``."""
    train(manifest, tmp_path / "run", overrides={**TINY, "max_epochs": 1})
    configs = tmp_path / "run" / "bundle" / "configs"
    merged = ConfigParser.load_config_files([str(configs / "train.json"), str(configs / "default.json")])
    assert merged["network_def"]["filters"] == list(TINY["network_def#filters"])
