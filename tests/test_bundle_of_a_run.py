"""The bundle that a run leaves says what the run was, and runs nothing that came with the run's options."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle.scripts import verify_metadata

from adl_monai.bundle import load_weights, open_workflow, shipped_bundle
from adl_monai.bundle_of_a_run import write_bundle
from adl_monai.stages.train import train
from tests.conftest import TINY, TINY_2D
from tests.test_bundles import SCHEMA


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def code(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All that MONAI's parser would run, reference or call in a config, and where."""
    if isinstance(config, dict | list):
        for name, item in config.items() if isinstance(config, dict) else enumerate(config):
            yield from code(item, f"{key}#{name}")
    elif "#_" in key or (isinstance(config, str) and config.startswith(("$", "@", "%"))):
        yield key, str(config)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_it_repeats_the_run(spatial_dims: int, manifest: Path, tmp_path: Path) -> None:
    options = {**(TINY if spatial_dims == 3 else TINY_2D), "max_epochs": 2, "seed": 5}
    options |= {"noise_kinds": {"gaussian": 1.0}, "validation_sigma": 0.1, "loss#texture": 0.5}
    run = train(manifest, tmp_path / "run", spatial_dims=spatial_dims, preset="release", overrides=options)
    config = read(run.bundle / "configs" / "train.json")
    assert {key: config[key] for key in ("max_epochs", "batch_size", "noise_kinds", "validation_sigma")} == {
        "max_epochs": 2,
        "batch_size": 4,
        "noise_kinds": {"gaussian": 1.0},
        "validation_sigma": 0.1,
    }
    assert config["loss"]["texture"] == 0.5
    assert config["loss"]["scale_weights"] == [1.0, 0.1, 0.1], "of the preset"
    assert str(tmp_path) not in json.dumps(config), "no place on this machine"

    places = {"manifest": str(manifest), "output_dir": str(tmp_path / "again")}
    workflow = open_workflow(run.bundle, ("train",), "train", places)
    workflow.initialize()
    workflow.run()
    again = torch.load(tmp_path / "again" / "bundle" / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(again[name], value) for name, value in load_weights(run.bundle).items())


def test_it_describes_itself(manifest: Path, tmp_path: Path) -> None:
    bundle = train(manifest, tmp_path / "run", overrides={**TINY, "max_epochs": 1}).bundle
    schema = tmp_path / "schema.json"
    schema.write_bytes(SCHEMA.read_bytes())
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(schema))
    ours, shipped = (read(root / "configs" / "metadata.json") for root in (bundle, shipped_bundle(3)))
    for key in ("name", "authors", "changelog", "data_source", "eval_metrics"):
        assert ours[key] != shipped[key], key
    assert ours["version"] in ours["changelog"]
    readme = (bundle / "docs" / "README.md").read_text()
    assert readme.startswith("# A run of adl-monai train\n")
    assert "model_card" not in readme
    assert "## MONAI Label and Deploy" in readme
    terms = (bundle / "docs" / "data_license.txt").read_text()
    assert terms.startswith("These weights carry the terms of the scans")
    assert "McConnell Brain Imaging Centre" in terms, "where --init adl3d brought it along"


def test_no_expression_of_a_runs_options_is_in_it(tmp_path: Path) -> None:
    source = shipped_bundle(3)
    training = read(source / "configs" / "train.json")
    harm = "$__import__('os').system('true')"
    training.update(learning_rate=harm, new=harm, seed=7, noise_sigma=[0.0, harm], cache_dir="/data", init="/m.pt")
    training["loss"].update(texture=harm, l1=2.0, scale_weights=["@seed"], _mode_="debug")
    training["optimizer"] = {"_target_": "os.system", "command": "true"}
    training["phases"]["_requires_"] = [harm]
    training["teachers"] = [{"_target_": "os.system", "command": "true"}]
    training["train"]["trainer"]["more"] = {"_target_": "os.system"}
    training["run"] = [harm]
    network = training["network_def"]
    write_bundle(source, tmp_path / "own", network, {}, training)
    own, shipped = (read(root / "configs" / "train.json") for root in (tmp_path / "own", source))
    assert set(code(own)) == set(code(shipped))
    assert (own["seed"], own["loss"]["l1"]) == (7, 2.0)
    assert {key: own[key] for key in ("cache_dir", "init")} == {"cache_dir": None, "init": None}
    assert own["optimizer"] == shipped["optimizer"]
