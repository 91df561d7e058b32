"""An exported network carries the description of the model that it is, not of the shipped one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
from monai.data import load_net_with_metadata

from adl_monai.bundle import shipped_bundle
from adl_monai.errors import ModelError
from adl_monai.stages.export import export

Model = Callable[..., Path]


def description(model: str | Path, output: Path) -> tuple[dict, dict]:
    export(model, output, kind="torchscript", overwrite=True)
    _, metadata, files = load_net_with_metadata(str(output), more_extra_files=("inference.json",))
    return metadata, json.loads(files["inference.json"])


def test_a_model_of_ones_own_is_described_by_its_own_files(identity_model: Model, tmp_path: Path) -> None:
    model = identity_model(3, 0.3)
    metadata, config = description(model, tmp_path / "m.ts")
    own = json.loads((model / "configs" / "metadata.json").read_text())
    assert {key: metadata[key] for key in own} == own
    assert metadata["data_source"] == "the scans of the manifest it was trained with"
    assert "weights_sha256" not in metadata
    assert metadata["eval_metrics"] == {}
    assert config == json.loads((model / "configs" / "inference.json").read_text()) | {
        "network_def": {"multi_scale": False, **config["network_def"]}
    }
    assert config["network_def"]["filters"] == [4, 4, 4, 4]
    assert config["tile"] == [32] * 3
    assert str(tmp_path) not in json.dumps([metadata, config])


def test_what_the_owner_wrote_of_it_goes_along(identity_model: Model, tmp_path: Path) -> None:
    model = identity_model(2)
    path = model / "configs" / "metadata.json"
    path.write_text(json.dumps({"version": "7", "description": "mine"}))
    metadata, _ = description(model, tmp_path / "m.ts")
    assert (metadata["version"], metadata["description"]) == ("7", "mine")
    path.unlink()
    metadata, _ = description(model, tmp_path / "m.ts")
    assert "weights_sha256" not in metadata
    for text in ('{"authors": "%/etc/hostname"}', '{"_target_": "os.mkdir"}', "[1]", "{"):
        path.write_text(text)
        with pytest.raises(ModelError, match=r"metadata\.json"):
            description(model, tmp_path / "m.ts")


def test_a_shipped_model_is_described_as_shipped(tmp_path: Path) -> None:
    metadata, config = description("adl2d", tmp_path / "m.ts")
    configs = shipped_bundle(2) / "configs"
    assert metadata["weights_sha256"] == json.loads((configs / "metadata.json").read_text())["weights_sha256"]
    assert config == json.loads((configs / "inference.json").read_text())


@pytest.mark.parametrize("name", ["model.ts", "adl3d.v1.ts"])
def test_the_folder_inside_the_file_has_the_files_name(identity_model: Model, tmp_path: Path, name: str) -> None:
    """MONAI Deploy reads ``<stem>/extra/inference.json``, and goes without a config where there is none."""
    path = export(identity_model(3), tmp_path / "out" / name, kind="torchscript")
    entries = ZipFile(path).namelist()
    assert {entry.split("/")[0] for entry in entries} == {path.stem}
    assert {f"{path.stem}/extra/{config}.json" for config in ("metadata", "inference")} <= set(entries)
    assert list(path.parent.iterdir()) == [path], "nothing is left beside it"
